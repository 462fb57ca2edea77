"""The training loop: step, commit, evaluation, checkpoint; and what to do when the round breaks.

::

    enter a round --> recover the state --> feed --> gradients --(all ranks agree: loss, flags)--> apply --> commit
          ^                                  ^                                                                 |
          |                                  +--- save? <-- evaluate? <----------------------------------------+
          +-- RoundBroken: nothing of the step has happened, or all of it
          +-- RoundPaused: all members go on together in another round

Flags ride along with the gradients, so all ranks decide alike at no cost: stop on request, save by the clock,
stop by a callback, pause for another round.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, field, replace
from typing import Any, Mapping, Sequence

import numpy as np

from hvtrain import adapters, failure, probe, tracing
from hvtrain.callbacks import Callback, Moment
from hvtrain.checkpoint.memory import SharedSnapshots
from hvtrain.config import Job
from hvtrain.data.feed import StepData, feed, pieces
from hvtrain.data.loader import Loader
from hvtrain.data.sampler import GlobalSampler, balanced_weights
from hvtrain.data.sources import as_source
from hvtrain.engine.world import SoloWorld, World
from hvtrain.errors import CheckpointError, Dismissed, RoundBroken, RoundPaused, WorkersLost
from hvtrain.evaluation import Evaluator
from hvtrain.horizon import Horizon
from hvtrain.keeping import Keeper
from hvtrain.meter import Meter
from hvtrain.progress import Progress
from hvtrain.recovery import Recovery
from hvtrain.saving import Saver
from hvtrain.session import Session
from hvtrain.task import Task
from hvtrain.timeline import Timeline

log = logging.getLogger(__name__)

STOP, SAVE, CALLBACK, PAUSE = range(4)
"""Meaning of the flags that are summed over the ranks with every step."""


@dataclass(frozen=True)
class Outcome:
    """How a run of the loop ended: at ``step``, and whether on request."""

    step: int
    stopped: bool
    summary: dict[str, Any] = field(default_factory=dict)


class Loop:
    """Trains ``task`` as ``job`` says, as one rank among those of the session's rounds.

    Args:
        memory: the host's shared memory for snapshots, None for none.
        worker, start: this worker's name and the number of the run's start, for the ledger.
    """

    def __init__(self, job: Job, task: Task, session: Session, *, threads: int, local_rank: int = 0,
                 callbacks: Sequence[Callback] = (), memory: SharedSnapshots | None = None, worker: str = "w0",
                 start: int = 1):
        self._job, self._task, self._session = job, task, session
        self._callbacks = [*task.callbacks(), *callbacks]
        self._adapter = adapters.make(job.framework, job=job, task=task, threads=threads, local_rank=local_rank,
                                      tick=session.tick)
        self._progress = Progress()
        self._world: World = SoloWorld()
        self._saver = Saver(job, self._adapter, self._callbacks, session)
        self._keeper = Keeper(job, self._saver, memory, worker, start)
        self._recovery = Recovery(self._adapter, self._saver, self._keeper, session, self._callbacks)
        self._timeline = Timeline(job, self._adapter, session)
        self._saved_at_end: int | None = None
        self._callback_stop = False
        self._begun = (0.0, 0)  # when this worker trained first, and from which step on

    @property
    def step(self) -> int:
        """Committed steps so far."""
        return self._progress.step

    @property
    def salvaged_step(self) -> int | None:
        """The step that this rank saved when the job ended by another's failure, if it did."""
        return self._saved_at_end

    def run(self) -> Outcome:
        """Train to the end, or until asked to stop.

        Raises:
            RoundBroken: a peer is gone, and the session is not elastic; ``salvaged_step`` says what was saved.
            Diverged: the loss of a step is not finite; nothing of that step was applied.
            UserCodeError, CheckpointError, and whatever user code raises.
        """
        self._prepare()
        probe.reached("joining")
        reason = ""
        try:
            while True:
                try:
                    outcome = self._live_through_a_round(reason)
                except (RoundBroken, RoundPaused) as error:
                    if not self._session.elastic:
                        raise
                    log.info("step %d: %s", self._progress.step, error)
                    reason = "pause" if isinstance(error, RoundPaused) else str(error)
                    continue
                if self._session.conclude(outcome.step, outcome.stopped, outcome.summary):
                    self._emit("on_end")
                    return outcome
                reason = "another worker could not finish"
        except Dismissed as error:
            self._save_last(error.salvage)
            return Outcome(self._progress.step, True)
        except BaseException as error:
            self._on_error(error)
            raise
        finally:
            self._loader.close()
            self._evaluator.close()
            self._keeper.close()

    def _live_through_a_round(self, reason: str) -> Outcome:
        standing = self._progress.step if self._recovery.holds_state else -1
        self._world = self._session.enter(self._outline(), standing, reason)
        self._adapter.join(self._world)
        first, old_size = not self._recovery.holds_state, self._recovery.size
        self._progress = self._recovery.run(self._world, self._progress)
        self._horizon.resize(self._world.size)
        self._progress.position = self._horizon.sampler.next(self._progress.position, 0)
        if first:
            self._begun = time.perf_counter(), self._progress.step
            self._emit("on_start")
        old_size = self._recovery.saved_size if first else old_size
        if old_size and old_size != self._world.size:
            self._emit("on_resize", old_size)
        outcome = self._train()
        self._saver.close()
        return outcome

    # Setting up ----------------------------------------------------------------------------------------
    def _prepare(self) -> None:
        job = self._job
        self._adapter.build()
        source = as_source(self._task.data("train"))
        weights = {"uniform": lambda: None, "weighted": self._task.sample_weights,
                   "balanced": lambda: balanced_weights(self._task.labels())}[job.data.sampling]()
        sampler = GlobalSampler(len(source), job.data.global_batch, job.run.seed, shuffle=job.data.shuffle,
                                drop_last=job.data.drop_last, weights=weights)
        self._keeper.draws(sampler)
        self._horizon = Horizon(job, sampler, job.launch.workers or 1)
        self._loader = Loader(source, self._task.collate, job.data.workers, job.data.prefetch, job.run.seed)
        self._evaluator = Evaluator(job, self._task, self._session.tick)
        self._meter = Meter()
        share = max(1, min(len(source), job.data.global_batch // (job.launch.workers or 1)))
        self._adapter.warm_up(lambda: self._loader.example(len(pieces(job)(np.arange(share))[0])))

    def _outline(self) -> dict[str, Any]:
        return {"steps": self._horizon.total, "steps_per_epoch": self._horizon.per_epoch,
                "samples": self._horizon.sampler.length, "parameters": self._adapter.parameter_count()}

    # Training ------------------------------------------------------------------------------------------
    def _train(self) -> Outcome:
        progress = self._progress
        last = self._follow_up()
        left = self._horizon.left(progress)
        if not last and left:
            steps = feed(self._horizon.sampler, self._loader, progress.position, rank=self._world.rank,
                         size=self._world.size, pieces=pieces(self._job), steps=left)
            self._meter = Meter()
            for data in steps:
                with self._timeline.step(progress.step + 1, self._world):
                    self._step(data)
                if self._follow_up():
                    break
        started, first = self._begun
        stopped = progress.flag(STOP) and not progress.ended and self._horizon.left(progress) > 0
        return Outcome(progress.step, stopped, {
            "steps": progress.step - first, "seconds": round(time.perf_counter() - started, 3),
            "metrics": progress.evaluated, "best": progress.best, "best_step": progress.best_step,
            "ended": progress.ended, "epoch": progress.position.epoch})

    def _step(self, data: StepData) -> None:
        """One step, up to its commit."""
        progress, adapter = self._progress, self._adapter
        self._emit("on_step_begin")
        adapter.seed(progress.step)
        overdue = self._world.rank == 0 and self._saver.overdue()
        flags = [float(self._session.stop_signal() > 0), float(overdue), float(self._callback_stop),
                 float(self._session.pause_asked())]
        self._keeper.used(progress, data, self._world, self._session.round)
        reduced = adapter.gradients(data.batches, data.counts, data.total, flags)
        if not math.isfinite(reduced.loss) and not reduced.overflow:
            raise failure.diverged(reduced.loss, progress.step + 1, data.position.epoch, data.position.cursor,
                                   weights_sound=adapter.finite())
        probe.reached("reduced")
        self._session.await_lease()
        with tracing.span(tracing.COMPUTE, "optimizer"):
            applied = adapter.apply(progress.step, self._horizon.factor(progress))
        progress.step += 1
        progress.position, progress.flags, progress.settled = data.after, reduced.flags, False
        self._keeper.committed(progress, self._session.round)
        self._session.at(progress.step)
        probe.reached("committed")
        self._meter.add(data.total, reduced.communication, reduced.hidden)
        measured = {"loss": reduced.loss, **applied}
        self._emit("on_step_end", metrics=measured)
        self._emit("on_commit", metrics=measured)
        self._log(measured)

    def _follow_up(self) -> bool:
        """What is due after a step, the same on every rank; True if the training ends here.

        Also done after a recovery: then the step was committed, but what follows it was not done by all.
        """
        progress = self._progress
        over = progress.ended or self._horizon.left(progress) == 0
        if not progress.settled:
            before = replace(progress)
            try:
                improved, early = self._evaluate(over or progress.flag(CALLBACK))
                progress.ended = progress.ended or early or progress.flag(CALLBACK)
                self._timeline.settle(progress.step, self._world, last=over or progress.ended or progress.flag(STOP))
            except RoundBroken:
                vars(progress).update(vars(before))  # it will be judged again
                raise
            progress.settled = True
            due = improved or self._saver.due(progress, epoch_end=progress.epoch_end) or progress.flag(SAVE)
            if due and self._world.rank == 0:
                self._saver.save(progress, self._world.size)
        last = over or progress.ended or progress.flag(STOP)
        if last and progress.step and self._world.rank == 0:
            self._saver.save(progress, self._world.size, wait=True)
        self._keeper.keep(progress, self._world)
        if not last and progress.flag(PAUSE):
            progress.flags = ()  # done with: the next round begins here
            self._saver.settle()  # this worker may not be in it
            raise RoundPaused("all members pause here, for another round")
        return last

    def _log(self, measured: Mapping[str, float]) -> None:
        if self._world.rank == 0 and self._progress.step % self._job.log.every == 0:
            values = {**measured, **self._meter.read(), "world_size": self._world.size}
            self._session.report("train", self._progress.step, self._progress.read_epoch, values)

    def _evaluate(self, last: bool) -> tuple[bool, bool]:
        if not self._evaluator.due(self._progress, epoch_end=self._progress.epoch_end, last=last):
            return False, False
        started = time.perf_counter()
        probe.reached("evaluation")
        metrics = self._evaluator.run(self._adapter, self._world)
        improved, early = self._evaluator.judge(self._progress, metrics)
        if self._world.rank == 0 and metrics:
            self._session.report("eval", self._progress.step, self._progress.read_epoch, metrics)
        if early:
            self._session.event("early_stop", self._progress.step)
        self._emit("on_evaluation_end", metrics=metrics)
        called_off = self._adapter.total([float(self._callback_stop)], "eval.stop")[0] > 0
        self._meter.leave_out(time.perf_counter() - started)
        return improved, early or called_off

    # Ends ----------------------------------------------------------------------------------------------
    def _on_error(self, error: BaseException) -> None:
        try:
            self._emit("on_exception", error)
        except Exception:  # noqa: BLE001 - the first error is the one to report
            log.exception("a callback failed in on_exception")
        if isinstance(error, WorkersLost):  # nobody is there to say who saves
            self._save_last(True, alone=True)
        else:
            self._save_last(isinstance(error, RoundBroken) and bool(self._progress.step) and self._session.salvage())

    def _save_last(self, wanted: bool, alone: bool = False) -> None:
        try:
            if wanted and self._progress.step and alone:
                if self._saver.save_alone(self._progress, self._recovery.size or 1):
                    self._saved_at_end = self._progress.step
            elif wanted and self._progress.step:
                self._saver.save(self._progress, self._recovery.size or 1, wait=True)
                self._saved_at_end = self._progress.step
            self._saver.close()
        except (CheckpointError, OSError) as failure:
            log.error("the last step could not be saved: %s", failure)

    def _emit(self, hook: str, *arguments: Any, metrics: Mapping[str, float] | None = None) -> None:
        for callback in self._callbacks:
            moment = Moment(step=self._progress.step, epoch=self._progress.position.epoch, rank=self._world.rank,
                            size=self._world.size, model=self._adapter.model, optimizer=self._adapter.optimizer,
                            metrics=metrics or {})
            getattr(callback, hook)(moment, *arguments)
            self._callback_stop = self._callback_stop or moment.stop
