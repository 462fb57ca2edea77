"""When the loop saves and what: between the training state and the checkpoint store."""

from __future__ import annotations

import logging
import os
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, Sequence

from hvtrain import probe
from hvtrain.adapters.base import Adapter
from hvtrain.callbacks import Callback
from hvtrain.checkpoint.background import BackgroundWriter
from hvtrain.checkpoint import fence as fences
from hvtrain.checkpoint.fence import LOCK_SECONDS, Fence
from hvtrain.checkpoint.policy import Retention
from hvtrain.checkpoint.snapshot import Snapshot
from hvtrain.checkpoint.store import Store
from hvtrain.checkpoint.writer import Written
from hvtrain.config import Job
from hvtrain.engine.world import World
from hvtrain.errors import CheckpointDamaged, CheckpointMissing, Diverged, GivenUp, RoundBroken, WorkersLost
from hvtrain.progress import Progress
from hvtrain.session import Session

log = logging.getLogger(__name__)


def checkpoint_directory(job: Job) -> Path:
    """Where a job keeps its checkpoints."""
    return Path(job.checkpoint.dir or os.path.join(job.run.dir, "checkpoints"))


class Saver:
    """Writes checkpoints on rank 0 (all ranks hold the same state) and restores from them.

    The snapshot is copied at once; writing it goes on beside the training, at most one at a time.
    """

    def __init__(self, job: Job, adapter: Adapter, callbacks: Sequence[Callback], session: Session):
        self._job, self._adapter, self._callbacks, self._session = job, adapter, callbacks, session
        self._config = job.checkpoint
        self._store = Store(checkpoint_directory(job))
        self._fence, self._fenced = Fence(self._store.directory), 0  # the round that the fence was raised to
        self._writer: BackgroundWriter | None = None
        self._last_time = time.monotonic()
        self._saved_step = -1

    def enter_round(self) -> None:
        """From now on nobody of a former round writes checkpoints; for rank 0, before anything is loaded.

        A disk that hangs keeps no round from being formed: the fence is then raised before the next checkpoint.
        Raises RoundBroken or WorkersLost where it is this round that is over (:meth:`Fence.raise_to`).
        """
        if not self._session.job_id or self._config.every is None:
            return
        outcome: list[BaseException | None] = []

        def attempt() -> None:
            try:
                self._store.directory.mkdir(parents=True, exist_ok=True)
                self._raise_fence()
                outcome.append(None)
            except BaseException as error:  # noqa: BLE001 - carried over to the training thread
                outcome.append(error)

        thread = threading.Thread(target=attempt, daemon=True, name="fence")
        thread.start()
        thread.join(2 * LOCK_SECONDS)
        error = outcome[0] if outcome else OSError(f"no answer from the disk within {2 * LOCK_SECONDS:g} s")
        if isinstance(error, OSError):
            log.warning("the checkpoints in %s cannot be fenced yet: %s", self._store.directory, error)
        elif error is not None:
            raise error

    def _raise_fence(self) -> None:
        session = self._session
        number = session.round
        self._fence.raise_to(session.job_id, number, first=session.first)
        self._fenced = number

    @contextmanager
    def _passage(self) -> Iterator[None]:
        """By the round that this worker is in when the checkpoint is complete, whenever it was begun."""
        session = self._session
        if not session.job_id:
            yield
            return
        if session.rank == 0 and self._fenced != session.round:  # the disk did not answer when it was begun
            try:
                self._raise_fence()
            except (RoundBroken, WorkersLost) as error:
                raise GivenUp(str(error)) from None
        with self._fence.passage(session.job_id, session.round):
            yield

    def due(self, progress: Progress, *, epoch_end: bool) -> bool:
        """Whether ``checkpoint.every`` asks for a checkpoint after this step (time is seen to elsewhere)."""
        every = self._config.every
        if every is None or every.unit == "second":
            return False
        if every.unit == "epoch":
            return epoch_end and progress.position.epoch % int(every.count) == 0
        return progress.step % int(every.count) == 0

    def overdue(self) -> bool:
        """Whether ``checkpoint.every`` is a time that has passed, by this rank's clock."""
        every = self._config.every
        return every is not None and every.unit == "second" and time.monotonic() - self._last_time >= every.count

    def save(self, progress: Progress, world_size: int, *, wait: bool = False) -> None:
        """Save the current state, unless this very step is saved already or ``checkpoint.every`` is null.

        Raises:
            CheckpointWriteFailed: this or the former write failed.
        """
        if self._config.every is None:
            return
        self._last_time = time.monotonic()
        if self._writer is None:
            self._writer = BackgroundWriter(self._store, self._retention(), self._written, self._passage)
        if progress.step != self._saved_step and not self._adapter.finite():
            raise Diverged(f"the weights after step {progress.step} are not finite, so no checkpoint of them is written; "
                           "the older ones are intact. Lower optim.lr or set train.grad_clip")
        if progress.step != self._saved_step:
            self._saved_step = progress.step
            self._writer.submit(self.snapshot(progress, world_size), timeout=self._job.launch.stop_timeout.seconds)
            probe.reached("checkpoint")
        if wait:
            self.settle()
            if self._writer.given_up == progress.step:
                self._saved_step = -1
                raise GivenUp(f"the checkpoint of step {progress.step} is not kept: the job has gone on without this worker")

    def save_alone(self, progress: Progress, world_size: int) -> bool:
        """Save without anybody to say which rank is to: the first of those that share the directory; True if it was us.

        Others wait until it is done, at most ``launch.stop_timeout``. Raises CheckpointWriteFailed.
        """
        deadline = time.monotonic() + self._job.launch.stop_timeout.seconds
        self._store.directory.mkdir(parents=True, exist_ok=True)
        with open(self._store.directory / ".alone.lock", "a") as lock:
            while not fences.lock(lock.fileno()):
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.02)
            if (self.newest_step() or 0) >= progress.step:
                return False
            self.save(progress, world_size, wait=True)
            return True

    def settle(self) -> None:
        """Wait for what is being written, at most ``launch.stop_timeout``, and raise its error."""
        if self._writer is not None:
            self._writer.wait(self._job.launch.stop_timeout.seconds)

    def close(self) -> None:
        """Wait for what is being written and raise its error. May be used again after that."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close(self._job.launch.stop_timeout.seconds)

    def newest_step(self) -> int | None:
        """The step of the newest durable checkpoint of this run, None if there is none."""
        return max(self._store.steps(), default=None)

    def catch_up(self, progress: Progress, world: World) -> None:
        """Save now if the last checkpoint that was due never became durable: who wrote it may be gone."""
        due = self._last_due(progress)
        if self._writer is not None and self._writer.given_up == self._saved_step:
            self._saved_step = -1
        if world.rank == 0 and progress.settled and due > self._saved_step and due > (self.newest_step() or 0):
            self.save(progress, world.size)

    def load(self, fresh: bool) -> tuple[Path, Snapshot] | None:
        """What to go on from, or None for a fresh start.

        Args:
            fresh: the job has only begun, so ``checkpoint.resume`` decides; else it goes on from its own checkpoints.

        Raises:
            CheckpointMissing, CheckpointDamaged: a certain checkpoint was asked for and is not usable, or
                there are checkpoints and none of them is sound.
        """
        resume = self._config.resume
        if fresh and resume == "never":
            return None
        if resume not in ("auto", "never") and (fresh or not self._store.steps()):
            return self._load_path(Path(resume))
        self._store.clean()
        found = self._store.load_newest(log)
        if found is None and self._store.steps():
            raise CheckpointDamaged(f"none of the checkpoints in {self._store.directory} is sound; 'hvtrain ckpt verify' "
                                    "says what is wrong with each. To start over: checkpoint.resume=never")
        if found is not None and found[0].parent == self._store.directory:
            self._saved_step = found[1].step
        return found

    def _load_path(self, path: Path) -> tuple[Path, Snapshot]:
        for directory in (path, path / "checkpoints"):
            store = Store(directory)
            if store.steps():
                found = store.load_newest(log)
                if found is None:
                    raise CheckpointDamaged(f"none of the checkpoints in {directory} is sound")
                return found
        if not path.is_dir():
            raise CheckpointMissing(f"checkpoint.resume is {str(path)!r}, which does not exist. Give a checkpoint, a "
                                    "run directory, auto or never")
        return path, self._store.read(path)

    def state(self, progress: Progress, world_size: int) -> dict[str, Any]:
        """All of the state that is not tensors, JSON-able."""
        return {**progress.to_json(), "world_size": world_size, "framework_state": self._adapter.scalars(),
                "callbacks": {key(c): c.state() for c in self._callbacks}}

    def snapshot(self, progress: Progress, world_size: int, copy: bool = True) -> Snapshot:
        """The whole state; without ``copy`` its tensors are good until training goes on."""
        fresh = progress.evaluated_step == progress.step
        return Snapshot(step=progress.step, epoch=progress.position.epoch, groups=self._adapter.export(copy),
                        state=self.state(progress, world_size), world_size=world_size,
                        metrics=progress.evaluated if fresh else {}, framework=self._job.framework)

    def _last_due(self, progress: Progress) -> int:
        """The last step up to ``progress`` at which ``checkpoint.every`` asked for a checkpoint; 0 if none has."""
        every = self._config.every
        if every is None or every.unit != "step":
            return 0
        return progress.step - progress.step % int(every.count)

    def _retention(self) -> Retention:
        config = self._config
        return Retention(keep=config.keep, keep_every=config.keep_every, best_metric=config.best,
                         best_mode=config.best_mode)

    def _written(self, written: Written) -> None:
        self._session.event("checkpoint", written.manifest.step, path=str(written.path),
                            seconds=round(written.seconds, 3))


def key(callback: Callback) -> str:
    """The name under which a callback's state is kept."""
    return callback.name or type(callback).__name__
