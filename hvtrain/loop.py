"""The training loop: step, commit, evaluation, checkpoint; and what to do when the round breaks.

::

    feed --> gradients --(all ranks agree: loss, flags)--> apply --> commit --> evaluate? --> save?
                 |                                                                 |
            RoundBroken: nothing of the step has happened; a survivor saves the last commit

Flags ride along with the gradients, so all ranks decide alike at no cost: stop on request, save by the clock,
stop by a callback.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, field
from typing import Any, Mapping, Sequence

from hvtrain import adapters, schedules
from hvtrain.callbacks import Callback, Moment
from hvtrain.config import Job
from hvtrain.data.feed import StepData, feed
from hvtrain.data.loader import Loader
from hvtrain.data.sampler import GlobalSampler, balanced_weights
from hvtrain.data.sources import as_source
from hvtrain.errors import CheckpointError, Diverged, RoundBroken
from hvtrain.evaluation import Evaluator
from hvtrain.meter import Meter
from hvtrain.progress import Progress
from hvtrain.saving import Saver, key
from hvtrain.session import Session
from hvtrain.task import Task

log = logging.getLogger(__name__)

STOP, SAVE, CALLBACK = range(3)
"""Meaning of the flags that are summed over the ranks with every step."""


@dataclass(frozen=True)
class Outcome:
    """How a run of the loop ended: at ``step``, and whether on request."""

    step: int
    stopped: bool
    summary: dict[str, Any] = field(default_factory=dict)


class Loop:
    """Trains ``task`` as ``job`` says, as one rank among those of the session's world."""

    def __init__(self, job: Job, task: Task, session: Session, *, threads: int, local_rank: int = 0,
                 callbacks: Sequence[Callback] = ()):
        self._job, self._task, self._session = job, task, session
        self._callbacks = [*task.callbacks(), *callbacks]
        self._adapter = adapters.make(job.framework, job=job, task=task, threads=threads, local_rank=local_rank)
        self._progress = Progress()
        self._flags = [0.0, 0.0, 0.0]
        self._saved_on_break: int | None = None
        self._callback_stop = False

    @property
    def step(self) -> int:
        """Committed steps so far."""
        return self._progress.step

    @property
    def salvaged_step(self) -> int | None:
        """The step that this rank saved after its round broke, if it did."""
        return self._saved_on_break

    def run(self) -> Outcome:
        """Train to the end, or until asked to stop.

        Raises:
            RoundBroken: a peer is gone; ``salvaged_step`` says what was saved.
            Diverged: the loss of a step is not finite; nothing of that step was applied.
            UserCodeError, CheckpointError, and whatever user code raises.
        """
        self._prepare()
        self._world = self._session.enter(self._outline())
        try:
            self._adapter.join(self._world)
            self._restore()
            self._emit("on_start")
            outcome = self._train()
            self._saver.close()
            self._emit("on_end")
            return outcome
        except BaseException as error:
            self._on_error(error)
            raise
        finally:
            self._loader.close()
            self._evaluator.close()

    def leave(self) -> None:
        """Leave the round; after that no collective operation is possible."""
        self._world.close()

    # Setting up ----------------------------------------------------------------------------------------
    def _prepare(self) -> None:
        job = self._job
        self._adapter.build()
        source = as_source(self._task.data("train"))
        weights = {"uniform": lambda: None, "weighted": self._task.sample_weights,
                   "balanced": lambda: balanced_weights(self._task.labels())}[job.data.sampling]()
        self._sampler = GlobalSampler(len(source), job.data.global_batch, job.run.seed, shuffle=job.data.shuffle,
                                      drop_last=job.data.drop_last, weights=weights)
        self._per_epoch = self._sampler.steps_per_epoch
        epochs = job.train.epochs
        self._total = job.train.steps if job.train.steps is not None else (epochs or 1) * self._per_epoch
        self._factor = schedules.make(job.optim.schedule, self._total, self._per_epoch)
        self._loader = Loader(source, self._task.collate, job.data.workers, job.data.prefetch, job.run.seed)
        self._evaluator = Evaluator(job, self._task)
        self._saver = Saver(job, self._adapter, self._callbacks, self._session)
        self._meter = Meter()

    def _outline(self) -> dict[str, Any]:
        return {"steps": self._total, "steps_per_epoch": self._per_epoch, "samples": self._sampler.length,
                "parameters": self._adapter.parameter_count()}

    def _restore(self) -> None:
        found = self._saver.load() if self._world.rank == 0 else None
        state = self._adapter.share(found[1].state if found else None, 0, "resume.state")
        if state is None:
            self._adapter.share_state(0)
            return
        if found is not None:
            self._adapter.restore(found[1].groups, state["framework_state"])
            self._session.event("resumed", state["step"], path=str(found[0]))
        self._adapter.share_state(0)
        self._progress = Progress.from_json(state)
        self._progress.position = self._sampler.next(self._progress.position, 0)
        for callback in self._callbacks:
            if key(callback) in state["callbacks"]:
                callback.load_state(state["callbacks"][key(callback)])
        if state["world_size"] != self._world.size:
            self._emit("on_resize", state["world_size"])
        self._session.at(self._progress.step)

    # Training ------------------------------------------------------------------------------------------
    def _train(self) -> Outcome:
        progress = self._progress
        left = 0 if progress.ended else max(0, self._total - progress.step)
        steps = feed(self._sampler, self._loader, progress.position, rank=self._world.rank, size=self._world.size,
                     micro_batch=self._job.data.micro_batch, steps=left)
        started, first = time.perf_counter(), progress.step
        self._meter = Meter()
        stop = False
        for data in steps:
            stop, save, progress.ended = self._step(data)
            last = stop or progress.ended or progress.step >= self._total
            if (save or last) and self._world.rank == 0:
                self._saver.save(progress, self._world.size, wait=last)
            if last:
                break
        stopped = stop and progress.step < self._total
        return Outcome(progress.step, stopped, {
            "steps": progress.step - first, "seconds": round(time.perf_counter() - started, 3),
            "metrics": progress.evaluated, "best": progress.best, "best_step": progress.best_step,
            "ended": progress.ended, "epoch": progress.position.epoch})

    def _step(self, data: StepData) -> tuple[bool, bool, bool]:
        """One step; (stop on request, save now, end early for good), the same on every rank."""
        progress, adapter = self._progress, self._adapter
        adapter.seed(progress.step)
        overdue = self._world.rank == 0 and self._saver.overdue()
        flags = [float(self._session.stop_signal() > 0), float(overdue), float(self._callback_stop)]
        reduced = adapter.gradients(data.batches, data.counts, data.total, flags)
        if not math.isfinite(reduced.loss):
            raise Diverged(self._diverged(reduced.loss, data))
        applied = adapter.apply(progress.step, self._factor(progress.step))
        progress.step += 1
        progress.position = data.after
        self._session.at(progress.step)
        self._meter.add(data.total, reduced.communication)
        epoch_end = data.after.epoch != data.position.epoch
        last = progress.step >= self._total
        measured = {"loss": reduced.loss, **applied}
        self._emit("on_step_end", metrics=measured)
        self._emit("on_commit", metrics=measured)
        self._log(measured, data)
        improved, early = self._evaluate(data, epoch_end, last or bool(reduced.flags[CALLBACK]))
        save = improved or self._saver.due(progress, epoch_end=epoch_end) or reduced.flags[SAVE] > 0
        return reduced.flags[STOP] > 0, save, early or reduced.flags[CALLBACK] > 0

    def _diverged(self, loss: float, data: StepData) -> str:
        step = self._progress.step
        weights = (f"The weights are still those of step {step}" if self._adapter.finite()
                   else f"The weights after step {step} are not finite either")
        return (f"the loss of step {step + 1} is {loss}. {weights}. Lower optim.lr, set train.grad_clip, or look at the "
                f"data: the step reads epoch {data.position.epoch} from sample {data.position.cursor} on")

    def _log(self, measured: Mapping[str, float], data: StepData) -> None:
        if self._world.rank == 0 and self._progress.step % self._job.log.every == 0:
            values = {**measured, **self._meter.read(), "world_size": self._world.size}
            self._session.report("train", self._progress.step, data.position.epoch, values)

    def _evaluate(self, data: StepData, epoch_end: bool, last: bool) -> tuple[bool, bool]:
        if not self._evaluator.due(self._progress, epoch_end=epoch_end, last=last):
            return False, False
        started = time.perf_counter()
        metrics = self._evaluator.run(self._adapter, self._world)
        improved, early = self._evaluator.judge(self._progress, metrics)
        if self._world.rank == 0:
            self._session.report("eval", self._progress.step, data.position.epoch, metrics)
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
        if isinstance(error, RoundBroken) and self._progress.step and self._session.salvage():
            try:
                self._saver.save(self._progress, self._world.size, wait=True)
                self._saved_on_break = self._progress.step
            except CheckpointError as failure:
                log.error("the last step could not be saved: %s", failure)
        try:
            self._saver.close()
        except CheckpointError as failure:
            log.error("%s", failure)

    def _emit(self, hook: str, *arguments: Any, metrics: Mapping[str, float] | None = None) -> None:
        for callback in self._callbacks:
            moment = Moment(step=self._progress.step, epoch=self._progress.position.epoch, rank=self._world.rank,
                            size=self._world.size, model=self._adapter.model, optimizer=self._adapter.optimizer,
                            metrics=metrics or {})
            getattr(callback, hook)(moment, *arguments)
            self._callback_stop = self._callback_stop or moment.stop
