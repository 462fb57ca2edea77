"""``log.timeline``: some steps of all ranks in one trace, ``timeline.json`` in the run's directory.

::

    steps 10 .. 20, every rank    the adapter's marks, the engine's measurements --> slices, kept in memory
    after 20, or the last step    rank 0 .. n-1 tell each other theirs; rank 0 writes the file and says "written"

The gathering belongs to what follows a step (``Progress.settled``), like an evaluation: where the round breaks in it,
all members of the next one do it again, unless one of them has heard "written", which settles the step for all. A
replacement takes part with what it has recorded since it came. A step that was broken off stays in the trace and is
called so.

All ranks' times are on the wall clock, to which each takes its own monotonic clock by one offset: so hosts compare as
well as their clocks agree.
"""

from __future__ import annotations

import json
import logging
import platform
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ContextManager, Iterator

from hvtrain import tracing
from hvtrain.adapters.base import Adapter
from hvtrain.config import Job
from hvtrain.engine.world import World
from hvtrain.report import trace
from hvtrain.report.rundir import write_atomically
from hvtrain.report.trace import Slice
from hvtrain.session import Session

log = logging.getLogger(__name__)

FILE = "timeline.json"
MOST = 200_000
"""Slices of all ranks together: rank 0 writes them within seconds, while the others wait, and viewers can show them."""

_NOT_TRACED = nullcontext()


class Timeline:
    """Records the steps that ``log.timeline`` asks for; does nothing in all others."""

    def __init__(self, job: Job, adapter: Adapter, session: Session):
        self._steps, self._path = job.log.timeline, Path(job.run.dir) / FILE
        self._adapter, self._session = adapter, session
        self._slices: list[Slice] = []
        self._world: World | None = None  # the one that keeps account of its reductions for us
        self._full = self._told = False

    def step(self, number: int, world: World) -> ContextManager[None]:
        """Within this context step ``number`` (from 1) is taken."""
        wanted = self._steps is not None and number in self._steps
        self._full = self._full or (wanted and len(self._slices) * world.size >= MOST)
        if wanted and not self._full:
            return self._recorded(number, world)
        if self._world is not None:
            self._world.record(False)
            self._world = None
        if not wanted:
            self._slices.clear()  # the step before was settled: by this rank, or by another for all
        return _NOT_TRACED

    @contextmanager
    def _recorded(self, number: int, world: World) -> Iterator[None]:
        if world is not self._world:
            world.record(True)
            self._world = world
        marks: list[tracing.Mark] = []
        name, begin = f"step {number}, broken off", time.monotonic()
        tracing.listen(marks)
        try:
            yield
            name = f"step {number}"
        finally:
            tracing.listen(None)
            place = {"rank": world.rank, "size": world.size, "round": self._session.round}
            self._slices.append(Slice(trace.STEPS, name, begin, time.monotonic(), place))
            if world.size == 1:  # what goes nowhere is not in flight
                marks = [mark for mark in marks if mark.row != tracing.QUEUE]
            self._slices += trace.drawn(marks, world.spans())

    def settle(self, step: int, world: World, *, last: bool) -> None:
        """Write the trace if ``step`` is the last one of it, or the ``last`` of the training; all ranks at once.

        Raises:
            RoundBroken: a member is gone. What was recorded is still there; this is to be called again.
        """
        steps = self._steps
        if steps is None or not (last or step == steps.last):
            return
        if step in steps:
            mine = {"host": platform.node(), "full": self._full,
                    "slices": trace.packed(self._slices, tracing.wall_offset())}
            ranks = [self._adapter.share(mine if rank == world.rank else None, rank, f"timeline.{rank}")
                     for rank in range(world.size)]
            if world.rank == 0:
                self._write(step, ranks)
            self._adapter.share(True if world.rank == 0 else None, 0, "timeline.written")
        elif world.rank == 0 and not self._told and not self._path.exists():
            early = step < steps.first
            self._tell(step, reason=f"the training ended with step {step}" if early else "it went on from a later one")

    def _write(self, step: int, ranks: list[dict[str, Any]]) -> None:
        if not any(rank["slices"] for rank in ranks):  # resumed where only what follows the step was left to do
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, json.dumps(trace.merged(ranks, str(self._steps)), separators=(",", ":")))
        except OSError as error:  # no reason to end a training
            log.error("%s cannot be written: %s", self._path, error)
            self._tell(step, reason=f"{self._path} cannot be written: {error.strerror}")
        else:
            cut = {"cut_short": f"there is room for {MOST:,} slices"} if any(rank["full"] for rank in ranks) else {}
            self._tell(step, path=str(self._path), **cut)

    def _tell(self, step: int, **values: str) -> None:
        self._told = True
        self._session.event("timeline", step, steps=str(self._steps), **values)
