"""What a worker says of its own end is heard before its agent's word that the process has ended.

::

    worker --- ..., Report, Failed("ValueError: boom") -- end    its own connection, read message by message
    agent  --- Exited(code 1) ------------------------------>    another one, which may be read first
                    |
                    waits for the worker's last word, or the end of its connection, after which none can
                    come: LAST_WORDS_SECONDS, and longer while what it has said is still being read

The kernel closes a process's sockets before its parent learns of its end: on one host the wait is for bytes that are
here already. Who was ended by a signal had no last word: that is told at once, as is the end of one that had its say.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Callable

from hvtrain.control.events import Event, WorkerEnded, WorkerExited

LAST_WORDS_SECONDS = 1.0
"""So long an exit waits for the end of the worker's connection: a process that the worker has forked may hold it open,
a network may have lost the end, and a worker that failed as it began may never have had one."""

MOST_WAITS = 10
"""It waits once more, so many times in all, if another word was read meanwhile, or if this process stood still."""

LATE_SECONDS = 0.1
"""A wait that ends so much too late: this process stood still, and has read nothing."""


@dataclass
class _Waiting:
    """An exit, when the wait for its worker's last word ends, how many waits there were, if another word was read."""

    exit: WorkerExited
    due: float
    timer: asyncio.TimerHandle
    waits: int = 1
    heard: bool = False


class LastWords:
    """Puts what is heard of workers' ends into order. Use within one event loop.

    ``feed`` takes the events; ``ended`` is called with the name of a worker right before its exit is fed.
    """

    def __init__(self, feed: Callable[[Event], None], ended: Callable[[str], object]):
        self._feed, self._ended = feed, ended
        self._silent: set[str] = set()  # workers that will say no more
        self._waiting: dict[str, _Waiting] = {}

    def take(self, event: Event) -> None:
        """Feed ``event``; an exit not before the worker's own words."""
        if isinstance(event, WorkerExited):
            return self._exited(event)
        self._feed(event)
        if isinstance(event, WorkerEnded) and (event.cause is not None or event.left):
            self.over(event.worker)

    def opened(self, worker: str) -> None:
        """The worker has a connection."""
        self._silent.discard(worker)

    def heard(self, worker: str) -> None:
        """A message of the worker has been read."""
        if worker in self._waiting:
            self._waiting[worker].heard = True

    def over(self, worker: str) -> None:
        """The worker will say no more, or is not waited for any longer."""
        waiting = self._waiting.pop(worker, None)
        if waiting is None:
            self._silent.add(worker)
        else:
            waiting.timer.cancel()
            self._book(waiting.exit)

    def _exited(self, exit: WorkerExited) -> None:
        if exit.signal or exit.worker in self._silent:
            self._silent.discard(exit.worker)
            self._book(exit)
        else:
            self._waiting[exit.worker] = _Waiting(exit, *self._wait(exit.worker))

    def _wait(self, worker: str) -> tuple[float, asyncio.TimerHandle]:
        loop = asyncio.get_running_loop()
        due = loop.time() + LAST_WORDS_SECONDS
        return due, loop.call_at(due, self._look, worker)

    def _look(self, worker: str) -> None:
        """A wait has ended."""
        waiting = self._waiting[worker]
        late = asyncio.get_running_loop().time() - waiting.due > LATE_SECONDS
        if waiting.waits == MOST_WAITS or not (waiting.heard or late):
            return self.over(worker)
        waiting.due, waiting.timer = self._wait(worker)
        waiting.waits, waiting.heard = waiting.waits + 1, False

    def _book(self, exit: WorkerExited) -> None:
        self._ended(exit.worker)
        self._feed(exit)
