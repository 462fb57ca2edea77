"""One thread for each stage, kept from step to step; and what ends all of them as soon as one fails.

::

    main thread     run(jobs) ----------------------------------> all have ended: raise the first failure, or return
    stage 0         job --put--> [line] ...                 |
    stage 1                        get --> job: raises --fail--> every line gets OVER: whoever waits there ends, too
"""

from __future__ import annotations

import queue
import threading
import weakref
from typing import Any, Callable, Sequence

OVER = object()
LAST_WAIT = 5.0
"""Seconds after a KeyboardInterrupt in which a stage may end; another one ends them."""


class Stopped(Exception):
    """Another stage has failed, so this one stops; not an error of its own."""


class Effort:
    """What the stages of one step share: the lines between them, and the first failure.

    A line has one reader. Whoever waits in :meth:`get` does so until its neighbour has put something or has failed; a
    neighbour that hangs in user code keeps it waiting, as it keeps the whole worker, until ``elastic.step_timeout``.
    """

    def __init__(self) -> None:
        self._lines: list[queue.SimpleQueue[Any]] = []
        self._lock = threading.Lock()
        self.error: BaseException | None = None

    def line(self) -> queue.SimpleQueue[Any]:
        """A new line; all are made before the stages begin."""
        made: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._lines.append(made)
        return made

    def get(self, line: queue.SimpleQueue[Any]) -> Any:
        """The next thing on ``line``. Raises Stopped if a stage has failed."""
        found = line.get()
        self.check()
        return found

    def check(self) -> None:
        """Raise Stopped if a stage has failed."""
        if self.error is not None:
            raise Stopped

    def fail(self, error: BaseException) -> None:
        """End the step with ``error``; later ones do not count."""
        with self._lock:
            if self.error is not None:
                return
            self.error = error
        for line in self._lines:
            line.put(OVER)


class Crew:
    """``count`` daemon threads. They end with :meth:`close`, or when nobody refers to the crew any more."""

    def __init__(self, count: int, name: str = "hvtrain-stage"):
        self._tasks: list[queue.SimpleQueue[Callable[[], None] | None]] = [queue.SimpleQueue() for _ in range(count)]
        threads = [threading.Thread(target=_serve, args=(tasks,), daemon=True, name=f"{name}-{number}")
                   for number, tasks in enumerate(self._tasks)]
        self.close = weakref.finalize(self, _dismiss, self._tasks)
        for thread in threads:
            thread.start()

    def run(self, jobs: Sequence[Callable[[], None]], effort: Effort) -> None:
        """Have each thread do its job. Returns, or raises the first failure, when none of them is at work any more.

        After a KeyboardInterrupt one that hangs is left behind: no further step follows.
        """
        ended: queue.SimpleQueue[None] = queue.SimpleQueue()
        for tasks, job in zip(self._tasks, jobs):
            tasks.put(_Task(job, effort, ended))
        working, wait = len(jobs), None
        while working:
            try:
                ended.get(timeout=wait)
                working -= 1
            except queue.Empty:
                break
            except BaseException as error:  # a signal's handler has raised; no stage may be left at work
                effort.fail(error)
                if isinstance(error, KeyboardInterrupt):
                    wait = LAST_WAIT if wait is None else 0.0
        if effort.error is not None:
            try:
                raise effort.error  # with the traceback of the thread that it comes from
            finally:
                effort.error = None  # or it would refer to itself, and all that its frames hold would stay


class _Task:
    """A job that says when it has ended, and fails for all."""

    def __init__(self, job: Callable[[], None], effort: Effort, ended: queue.SimpleQueue[None]):
        self._job, self._effort, self._ended = job, effort, ended

    def __call__(self) -> None:
        try:
            self._job()
        except Stopped:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again by Crew.run
            self._effort.fail(error)
        finally:
            self._ended.put(None)


def _serve(tasks: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    while True:
        task = tasks.get()
        if task is None:
            return
        task()
        del task  # or this thread would hold on to a step until the next one


def _dismiss(lines: Sequence[queue.SimpleQueue[Any]]) -> None:
    for tasks in lines:
        tasks.put(None)
