"""What a worker writes down step by step beside checkpoints: the host's snapshot in shared memory, and the ledger."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

from hvtrain.checkpoint.memory import MemorySnapshot, SharedSnapshots
from hvtrain.config import Job
from hvtrain.config.units import Every
from hvtrain.data.feed import StepData
from hvtrain.data.sampler import GlobalSampler
from hvtrain.engine.world import World
from hvtrain.errors import EnvironmentNotReady
from hvtrain.progress import Progress
from hvtrain.report.ledger import Ledger
from hvtrain.saving import Saver

log = logging.getLogger(__name__)


SHARE, SHORTEST_SECONDS = 0.005, 0.25
"""elastic.snapshot_every: auto. Snapshots take this share of the time, and come at most so often (seconds)."""


class Keeper:
    """Keeps what others need when this process is gone.

    Args:
        memory: the host's shared memory; None if there is none.
        worker: names this worker's ledger.
        start: how many times the run has been started; a ledger tells its rounds apart by it.
    """

    def __init__(self, job: Job, saver: Saver, memory: SharedSnapshots | None, worker: str, start: int = 1):
        every = job.elastic.snapshot_every
        self._every = every if job.elastic.enabled else None
        self._job, self._saver = job, saver
        self._memory = memory if self._every is not None else None
        self._kept_step, self._kept_time = -1, time.monotonic()
        self._cost: float | None = None  # of one snapshot, seconds: the cheapest so far
        self._reserving: threading.Thread | None = None
        self._ledger: Ledger | None = None
        if job.log.ledger:
            self._ledger = Ledger(Path(job.run.dir) / "ledger" / f"{worker}-{start}.jsonl", start=start)

    def draws(self, sampler: GlobalSampler) -> None:
        """The samples of the ledger are drawn by ``sampler``."""
        if self._ledger is not None:
            self._ledger.sampler(sampler, weighted=self._job.data.sampling != "uniform")

    def used(self, progress: Progress, data: StepData, world: World, round: int) -> None:
        """This rank is about to reduce the gradients of ``data``."""
        if self._ledger is not None:
            self._ledger.used(progress.step + 1, round, world.rank, world.size, data.position.epoch,
                              data.position.cursor, data.indices, total=data.total)

    def committed(self, progress: Progress, round: int) -> None:
        """A step is complete."""
        if self._memory is not None and self._local_rank < 256:
            self._memory.commit(progress.step, self._local_rank)
        if self._ledger is not None:
            self._ledger.committed(progress.step, round)

    def join(self, world: World) -> None:
        """This worker's place has changed; the lowest worker of a host keeps its snapshot."""
        self._local_rank = world.local_rank

    def keep(self, progress: Progress, world: World) -> None:
        """Keep a snapshot if one is due."""
        memory = self._memory
        if memory is None or world.local_rank != 0 or progress.step == self._kept_step or not progress.step:
            return
        began = time.monotonic()
        if self._reserving is None:
            self._reserving = self._reserve(memory, progress, world)
        if not self._due(progress, began) or self._reserving.is_alive():
            return
        snapshot = self._saver.snapshot(progress, world.size, copy=False)
        try:
            memory.write(progress.step, snapshot.groups, snapshot.state)
        except EnvironmentNotReady as error:
            log.error("%s", error)
            self._memory = None
        self._kept_step, self._kept_time = progress.step, time.monotonic()
        cost = self._kept_time - began
        self._cost = cost if self._cost is None else min(self._cost, cost)

    def _reserve(self, memory: SharedSnapshots, progress: Progress, world: World) -> threading.Thread:
        """Have the memory for snapshots made beside the training: new pages take several times as long as a copy."""
        groups = self._saver.snapshot(progress, world.size, copy=False).groups  # only its outline is looked at

        def reserve() -> None:
            try:
                memory.reserve(groups)
            except EnvironmentNotReady as error:
                log.error("%s", error)
                self._memory = None

        thread = threading.Thread(target=reserve, name="hvtrain-reserve", daemon=True)
        thread.start()
        return thread

    def _due(self, progress: Progress, now: float) -> bool:
        every = self._every
        if every == "auto":
            return now - self._kept_time >= max(SHORTEST_SECONDS, (self._cost or 0.0) / SHARE)
        assert isinstance(every, Every)
        if every.unit == "step":
            return progress.step % int(every.count) == 0
        return now - self._kept_time >= every.count

    @property
    def kept(self) -> int:
        """The step of the host's newest snapshot, -1 if there is none."""
        newest = self._memory.newest() if self._memory is not None else None
        return -1 if newest is None else newest

    @property
    def known(self) -> int:
        """The highest step that is known to have been committed on this host."""
        return self._memory.committed if self._memory is not None else 0

    def read(self) -> MemorySnapshot | None:
        """The host's newest snapshot."""
        return self._memory.read() if self._memory is not None else None

    def close(self) -> None:
        if self._ledger is not None:
            self._ledger.close()
            self._ledger = None

    _local_rank = 0
