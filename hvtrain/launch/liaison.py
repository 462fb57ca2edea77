"""The first process's tie to horovodrun's elastic driver, for all agents of the job (see horovod_elastic.py).

::

    coordinator: who is connected --> Liaison --READY of each, when somebody is lost or hosts have come--> driver
    coordinator  <--- evict(slot) --  Liaison <-----------places in the new book------------------------- driver
                                      Liaison --where the coordinator is, again--> board
"""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import Awaitable, Callable, Iterable

from hvtrain.launch.board import Board, Notice
from hvtrain.launch.drivernews import DriverNews
from hvtrain.launch.horovod_elastic import DRIVER_SECONDS, Place, own_slot, ready
from hvtrain.launch.kvstore import Store

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.1
"""How often it is looked who is connected."""

GATHER_SECONDS = 0.3
"""Pause between the first sign that a new book is needed and asking for it: a host's processes do not end at once."""

ANSWER_SECONDS = 1.0
"""The driver answers all at once; who has no answer so long after the first one has asked for the book after it."""

MISSING_SECONDS = 30.0
"""If a process of the book has not connected by then, the driver is asked for a new one: perhaps it has died."""

SETTLE_SECONDS = 10.0
"""How long the driver may take at the job's end to notice what the job knows already."""

REGISTER_SECONDS = 90.0
"""How long the driver may try to reach the address that is registered with it (3 x 20 s in Horovod 0.28.1)."""


class Liaison:
    """Keeps the driver's book right while the job runs. Use within one event loop.

    Args:
        connected: the slots ("HOST:LOCAL_RANK") whose agents are connected to the coordinator now.
        evict: called with a slot that is not in the book any more; its agent is to leave soon.
        resign: called if this process is not the first of the book any more; it is to end the job, which another
            process then takes over.
    """

    def __init__(self, store: Store, board: Board, *, connected: Callable[[], Iterable[str]],
                 evict: Callable[[str], None], resign: Callable[[], None]):
        self._store, self._board, self._connected = store, board, connected
        self._evict, self._resign = evict, resign
        self._own = own_slot()
        self._size = Place.of_environment().size
        self._present = {self._own}
        self._lost: set[str] = set()  # not made up for by a new book yet
        self._evicted: set[str] = set()
        self._asked: dict[str, asyncio.Task[Place | None]] = {}
        self._clock = asyncio.get_running_loop().time
        self._drawn_up = self._clock()
        self._wanted_since: float | None = None  # a new book
        self._wanted_again = False  # another one after the one that has been asked for
        self._ending = self._resigned = False
        self._news = DriverNews(self._want)
        self._notice: Notice | None = None
        self._tasks: list[asyncio.Task] = []

    async def start(self, notice: Notice, interface: str) -> None:
        """Announce the coordinator, and look after the book from then on. Raises ConnectionError, OSError."""
        self._notice = notice
        await self._board.announce(notice)
        self._tasks = [asyncio.create_task(self._register(interface)), asyncio.create_task(self._run())]

    async def settle(self, exit_code: int) -> None:
        """Leave the driver no reason to wait. To be called when the job is over and no agent knows of it yet.

        Takes long, but at most ``DRIVER_SECONDS``, only where the driver would hang if its processes ended earlier.
        """
        self._ending = True
        for task in self._tasks:
            task.cancel()
        if self._resigned:
            await self._say(self._board.announce_handover(self._evicted))
            return
        if self._lost and len(self._mates()) == len(self._present):
            self._lost.clear()  # it would end all there are; so it will report an error although nobody needs help
        if self._lost:
            self._want()
        elif not self._asked:
            self._wanted_since = None  # hosts that have just come are not needed any more
        if not await self._settled(SETTLE_SECONDS):
            await self._speak_for_the_lost(exit_code)
        if self._asked:
            print("hvtrain: the job is over. horovodrun waits for hosts (--min-np, --elastic-timeout) and would never "
                  "end if its processes ended before it has found some or given up.", file=sys.stderr, flush=True)
            await self._settled(DRIVER_SECONDS)
        await self._say(self._board.announce_end(exit_code))

    async def close(self) -> None:
        """Forget everything; nothing is undone at the driver."""
        for task in (*self._tasks, *self._asked.values()):
            task.cancel()
        await self._news.close()

    # The book ------------------------------------------------------------------------------------------
    async def _run(self) -> None:
        while True:
            try:
                await self._look()
            except OSError as error:
                log.warning("horovodrun's driver: %s", error)
            await asyncio.sleep(LOOK_SECONDS)

    def _want(self) -> None:
        if self._asked:  # the book that has been asked for may have been drawn up just before
            self._wanted_again = True
        elif self._wanted_since is None:
            self._wanted_since = self._clock()

    async def _look(self) -> None:
        connected = {self._own, *self._connected()}
        self._evicted &= connected  # a slot that comes back is somebody new
        lost = self._present - connected
        self._lost = (self._lost | lost) - connected  # some come back: only their connection was lost
        self._present = connected - self._evicted
        missing = len(self._present) < self._size and self._clock() - self._drawn_up > MISSING_SECONDS
        answered = any(task.done() for task in self._asked.values())
        if missing or lost and (answered or not self._asked):
            self._want()
        if self._asked or self._due():
            self._wanted_since = None
            for slot in self._present - self._asked.keys():
                self._ask(slot)
        if answered:
            await self._hear()

    def _due(self) -> bool:
        """Whether it is time to ask for a new book.

        A lost process whose host still has others is kept from the driver until the end: it would have them all ended.
        """
        if self._wanted_since is None or self._clock() - self._wanted_since < GATHER_SECONDS:
            return False
        mates = self._mates()
        return len(mates) < len(self._present) if self._ending else not mates

    def _mates(self) -> set[str]:
        """Those on hosts of which a process is lost."""
        hit = {_host(slot) for slot in self._lost}
        return {slot for slot in self._present if _host(slot) in hit}

    def _ask(self, slot: str) -> None:
        self._asked[slot] = asyncio.create_task(ready(self._store, slot))

    async def _hear(self) -> None:
        """Take the driver's answers, if there is a new book."""
        await asyncio.wait(self._asked.values(), timeout=ANSWER_SECONDS)
        done = {slot: task.result() for slot, task in self._asked.items() if task.done()}
        places = {slot: place for slot, place in done.items() if place is not None}
        seated = [place for place in places.values() if place.rank >= 0]
        if not seated and len(done) < len(self._asked):
            return  # a left-out slot is told so at once; the others still wait
        self._asked = {slot: task for slot, task in self._asked.items() if slot not in done}
        self._drawn_up = self._clock()
        if self._wanted_again:
            self._wanted_again = False
            self._want()
        if not seated:
            log.warning("horovodrun's driver gives no answer")
            return
        self._lost.clear()
        self._size = seated[0].size
        await self._obey({slot: place.rank for slot, place in places.items()})

    async def _obey(self, ranks: dict[str, int]) -> None:
        """Do what the new book asks for."""
        out = {slot for slot, rank in ranks.items() if rank < 0} - self._evicted
        self._evicted |= out
        self._present -= out
        if self._ending or self._resigned:
            return
        if ranks.get(self._own, 0) != 0:
            self._resigned = True
            self._resign()
            return
        for slot in sorted(out):
            self._evict(slot)
        assert self._notice is not None
        await self._board.announce(self._notice)

    async def _register(self, interface: str) -> None:
        """Have the driver tell us of hosts that come and go."""
        assert self._notice is not None and self._notice.address is not None
        host = self._notice.address.host
        try:
            await self._news.open(host)
            await self._store.put(f"worker_addresses/{self._own}", self._news.registration(interface), REGISTER_SECONDS)
        except OSError as error:
            log.warning("new hosts will be taken in only when another one is lost: horovodrun cannot reach %s: %s",
                        host, error)

    # The end -------------------------------------------------------------------------------------------
    async def _settled(self, seconds: float) -> bool:
        deadline = self._clock() + seconds
        while True:
            try:
                await self._look()
            except OSError as error:
                log.debug("horovodrun's driver: %s", error)
            if not self._asked and not (self._wanted_since is not None and self._lost):
                return True
            if self._clock() > deadline:
                return False
            await asyncio.sleep(LOOK_SECONDS)

    @staticmethod
    async def _say(announcement: Awaitable[None]) -> None:
        try:
            await announcement
        except ConnectionError as error:
            log.debug("nobody can be told: %s", error)

    async def _speak_for_the_lost(self, exit_code: int) -> None:
        """The driver takes processes for alive that the job has lost, behind a dead network say.

        It would wait for them for ever. Spoken for, it ends them, and therefore reports that the job has failed.
        """
        lost = set(self._lost)
        for slot in lost - self._asked.keys():
            self._ask(slot)
        if await self._settled(SETTLE_SECONDS) and exit_code == 0 and lost:
            print(f"hvtrain: horovodrun has not noticed that the processes {', '.join(sorted(lost))} are lost; it will "
                  "report an error although the job is done.", file=sys.stderr, flush=True)
            self._tasks += [asyncio.create_task(ready(self._store, slot)) for slot in lost]
            await asyncio.sleep(GATHER_SECONDS)  # until they are sent; there will be no answer


def _host(slot: str) -> str:
    return slot.rpartition(":")[0]
