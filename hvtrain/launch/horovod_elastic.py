"""Under horovodrun with elastic flags: what its driver has to hear, so that it neither kills, hangs nor ends early.

The driver (Horovod 0.28.1, runner/elastic: driver.py, registration.py, rendezvous.py) keeps a book of the slots that it
has filled with processes. Once every slot of the book has recorded a state, it judges::

    state     recorded by                                      judgement when all have recorded
    SUCCESS   the process ends with code 0                     any SUCCESS: all processes are ended
    FAILURE   it ends with another code                        its host is left out from then on
    READY     GET rank_and_size/HOST:LOCAL_RANK, which is      no SUCCESS: a new book is drawn up from the hosts that
              answered with the slot's place in the new book   there are, and processes are started in its new slots

What follows from that:

- A lost host stays in the book, and new hosts are not taken in, until all others are READY. The driver does not check
  who asks: the first process does it for all (liaison.py).
- A second READY of a slot counts twice, and so does an end with 0 after READY: then the driver waits for ever. So the
  job does not end while a READY is unanswered, and nobody ends with 0 while the job goes on.
- A rank of -1 means that the slot is not in the new book. A left-out host's processes get SIGTERM, 5 s later SIGKILL.
- A new book empties the key-value store, so the coordinator is announced again.
- The oldest host comes first. If that is lost, every process of the others asks for itself, and who gets rank 0 is
  the first from then on.
- The environment of a process tells its place when it was started; only HOST and LOCAL_RANK never change.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from dataclasses import astuple, dataclass

from hvtrain.errors import ExitCode
from hvtrain.launch.board import Board
from hvtrain.launch.kvstore import Store

log = logging.getLogger(__name__)

DRIVER_SECONDS = 660.0
"""The driver waits up to 600 s (--elastic-timeout) for enough hosts before it gives up; and some grace."""

_NAMES = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE", "CROSS_RANK", "CROSS_SIZE")


@dataclass(frozen=True)
class Place:
    """A slot's place in the driver's book; all -1 if it has none."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    cross_rank: int
    cross_size: int

    @classmethod
    def of_environment(cls) -> Place:
        """The place that this process was started with, or has got since."""
        return cls(*(int(os.environ[f"HOROVOD_{name}"]) for name in _NAMES))

    def environment(self) -> dict[str, str]:
        """The variables that tell it."""
        return {f"HOROVOD_{name}": str(number) for name, number in zip(_NAMES, astuple(self))}

    @classmethod
    def parse(cls, text: str) -> Place:
        """From the driver's answer. Raises ValueError."""
        numbers = [int(number) for number in text.split(",")]
        if len(numbers) != len(_NAMES):
            raise ValueError(f"expected {len(_NAMES)} numbers, got {text!r}")
        return cls(*numbers)


def is_elastic() -> bool:
    """Whether horovodrun was given elastic flags."""
    return os.environ.get("HOROVOD_ELASTIC") == "1"


def own_slot() -> str:
    """The name of this process's slot in the driver's book."""
    return f"{os.environ['HOROVOD_HOSTNAME']}:{os.environ['HOROVOD_LOCAL_RANK']}"


async def ready(store: Store, slot: str, seconds: float | None = None) -> Place | None:
    """Record a slot as READY, which must be done once per book; returns its place in the next book.

    None: the driver is gone, or the slot's process is, or there is no new book after ``seconds``.
    """
    try:
        return Place.parse(await store.get(f"rank_and_size/{slot}", seconds) or "")
    except (ConnectionError, ValueError) as error:
        log.debug("no place for %s: %s", slot, error)
        return None


async def next_place(store: Store) -> Place | None:
    """The coordinator is gone: this process's place in the next book, once the driver knows of the loss.

    None: it has none. Signals have their default effects while it waits.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().remove_signal_handler(number)
    place = await ready(store, own_slot(), DRIVER_SECONDS)
    return place if place is not None and place.rank >= 0 else None


async def verdict(code: int, board: Board) -> int | None:
    """What becomes of an agent that was told to end with ``code``: the code that it does end with; None: it goes on.

    One that leaves while the job goes on must not end with 0: for the driver the whole job would be done.
    """
    try:
        notice = await board.read()
    except ConnectionError:
        return code  # the driver is gone already, so the job is over
    if notice is not None and notice.handover is not None:
        return None if own_slot() not in notice.handover else int(ExitCode.TERMINATED)
    if code == 0 and (notice is None or notice.over is None):
        return int(ExitCode.TERMINATED)
    return code
