"""After a round has formed: which state do its members go on from, and how does it reach those who lack it?

::

    1. a member trains on:      the state of the member with the highest step, in its memory       nothing is lost
    2. nobody holds a state:    the newest snapshot that a host keeps in shared memory              some steps
    3. no snapshot either:      the newest durable checkpoint, or the beginning                     more steps

All members tell each other what they hold in one small reduction, and so decide alike. Survivors differ by one step at
most, because nothing is applied unless everything has been reduced.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any, Sequence

from hvtrain import probe
from hvtrain.adapters.base import Adapter
from hvtrain.callbacks import Callback
from hvtrain.engine.handover import Fetch, Offer
from hvtrain.engine.world import World
from hvtrain.keeping import Keeper
from hvtrain.progress import Progress
from hvtrain.saving import Saver, key
from hvtrain.session import Session

log = logging.getLogger(__name__)

COLUMNS = 4
"""What each member says: committed steps + 1 or 0, settled, newest snapshot + 1, highest known step."""


@dataclass(frozen=True)
class Source:
    """Where the state of a round comes from: ``kind`` start, members, memory or checkpoint; from which rank."""

    kind: str
    rank: int
    lacking: tuple[int, ...]  # ranks that need the tensors
    behind: tuple[int, ...]  # ranks that need what is not tensors
    known: int


def choose(table: Sequence[Sequence[float]]) -> Source:
    """The source of a round's state, from what every rank has said (rows of ``COLUMNS`` numbers)."""
    ranks = range(len(table))
    known = int(max([row[3] for row in table] + [row[0] - 1 for row in table]))
    best = max((row[0], row[1]) for row in table)
    if best[0] > 0:
        rank = next(r for r in ranks if (table[r][0], table[r][1]) == best)
        lacking = tuple(r for r in ranks if table[r][0] < best[0])
        return Source("members", rank, lacking, tuple(r for r in ranks if (table[r][0], table[r][1]) != best), known)
    kept = max(row[2] for row in table)
    rank = next(r for r in ranks if table[r][2] == kept) if kept > 0 else 0
    others = tuple(r for r in ranks if r != rank)
    return Source("memory" if kept > 0 else "checkpoint", rank, others, others, known)


class Recovery:
    """Brings the members of a new round to one state."""

    def __init__(self, adapter: Adapter, saver: Saver, keeper: Keeper, session: Session, callbacks: Sequence[Callback]):
        self._adapter, self._saver, self._keeper = adapter, saver, keeper
        self._session, self._callbacks = session, callbacks
        self.holds_state = False
        self.size = 0  # of the round before
        self.saved_size = 0  # of the world that wrote the state which this worker began with

    def run(self, world: World, progress: Progress) -> Progress:
        """Agree, send and receive. Returns where to go on.

        Raises:
            RoundBroken: a member is gone; this worker's own state is as it was, or that of the source.
            CheckpointError: there is no state to go on from where there should be one.
        """
        began = time.perf_counter()
        self._keeper.join(world)
        if world.rank == 0:
            self._saver.enter_round()
        source = choose(self._table(world, progress))
        agreed = time.perf_counter()
        kind = source.kind
        if kind != "members":
            kind, progress = self._begin_from(source, world, progress)
        received = 0
        if world.size > 1 and (source.behind or kind == "start"):
            probe.reached("state")
            progress, received = self._pass_on(source, world, progress)
        self.holds_state, self.size = True, world.size
        self._session.formed(progress.step, source=kind, known=max(source.known, progress.step), received=received,
                             seconds={"agree": agreed - began, "state": time.perf_counter() - agreed})
        self._saver.catch_up(progress, world)
        return progress

    def _table(self, world: World, progress: Progress) -> list[list[float]]:
        mine = [progress.step + 1 if self.holds_state else 0, float(progress.settled), self._keeper.kept + 1,
                self._keeper.known]
        everything = [0.0] * (COLUMNS * world.size)
        everything[COLUMNS * world.rank:COLUMNS * (world.rank + 1)] = map(float, mine)
        summed = self._adapter.total(everything, "recovery.table")
        return [summed[COLUMNS * rank:COLUMNS * (rank + 1)] for rank in range(world.size)]

    def _begin_from(self, source: Source, world: World, progress: Progress) -> tuple[str, Progress]:
        """Nobody trains on: the source loads what was kept; the others get it from there."""
        if world.rank != source.rank:
            found_kind = self._adapter.share(None, source.rank, "recovery.kind") if world.size > 1 else "start"
            return found_kind, progress
        found = self._load(source)
        kind = "start"
        if found is not None:
            kind, groups, state = found
            self._adapter.restore(groups, state["framework_state"])
            progress = self._take(state)
            # Who asked for a stop then has had it, and the round that was to pause is history.
            progress.flags = () if progress.settled else (0.0, *progress.flags[1:3])
        if world.size > 1:
            self._adapter.share(kind, source.rank, "recovery.kind")
        return kind, progress

    def _load(self, source: Source) -> tuple[str, Any, dict[str, Any]] | None:
        fresh = self._session.fresh
        if source.kind == "memory" and not fresh:
            kept = self._keeper.read()
            durable = self._saver.newest_step()
            if kept is not None and kept.step >= (-1 if durable is None else durable):
                log.warning("going on from the snapshot of step %d in this host's memory", kept.step)
                return "memory", kept.groups, kept.state
        found = self._saver.load(fresh)
        if found is None:
            return None
        path, snapshot = found
        self._session.event("resumed", snapshot.step, path=str(path))
        return "checkpoint", snapshot.groups, snapshot.state

    def _pass_on(self, source: Source, world: World, progress: Progress) -> tuple[Progress, int]:
        mine = world.rank == source.rank
        to_all = len(source.lacking) == world.size - 1
        offer = None
        if mine and source.lacking and not to_all:
            offer = Offer(self._session.address, self._session.token)
        try:
            state = self._adapter.share({
                "state": self._saver.state(progress, world.size), "offer": offer.address if offer else None,
            } if mine else None, source.rank, "recovery.state")
            if source.lacking and to_all:
                received = self._adapter.share_state(source.rank)
            elif offer is not None:
                with self._session.breakable(offer):
                    offer.serve(len(source.lacking), self._adapter.export(copy=False), timeout=world.timeout)
                received = 0
            elif world.rank in source.lacking:
                received = self._fetch(tuple(state["offer"]), state["state"], world)
            else:
                received = 0
        finally:
            if offer is not None:
                offer.close()
        if world.rank in source.behind:
            progress = self._take(state["state"])
        return progress, received

    def _fetch(self, address: tuple[str, int], state: dict[str, Any], world: World) -> int:
        with self._session.breakable(Fetch(address, self._session.token, timeout=world.timeout)) as fetch:
            groups = fetch.run()
        self._adapter.restore(groups, state["framework_state"])
        return sum(blob.nbytes for blobs in groups.values() for blob in blobs.values())

    def _take(self, state: dict[str, Any]) -> Progress:
        """Everything of a saved state that is not tensors."""
        for callback in self._callbacks:
            if key(callback) in state["callbacks"]:
                callback.load_state(state["callbacks"][key(callback)])
        self.saved_size = state["world_size"]
        return Progress.from_json(state)
