"""Distributed evaluation with exact weighting, the best metric, and early stopping."""

from __future__ import annotations

from typing import Any, Callable, Iterable, Iterator, Mapping

from hvtrain.adapters.base import Adapter
from hvtrain.checkpoint.policy import better, resolve_mode
from hvtrain.config import Job
from hvtrain.data.feed import shares
from hvtrain.data.loader import Loader
from hvtrain.data.sources import as_source
from hvtrain.engine.world import World
from hvtrain.errors import UsageError
from hvtrain.progress import Progress
from hvtrain.task import Task


class Evaluator:
    """Evaluates on the task's ``eval`` data; does nothing where there is none."""

    def __init__(self, job: Job, task: Task, tick: Callable[[], None] = lambda: None):
        data = task.data("eval") if job.eval.every is not None else None
        self._job, self._tick = job, tick
        self._source = as_source(data) if data is not None else None
        if self._source is None and (job.checkpoint.best or job.train.early_stopping):
            raise UsageError("checkpoint.best and train.early_stopping need evaluations, but the task's data('eval') "
                             "is None")
        if job.checkpoint.best is not None:  # said before training rather than after the first evaluation
            resolve_mode(job.checkpoint.best, job.checkpoint.best_mode)
        if job.train.early_stopping is not None:
            resolve_mode(job.train.early_stopping.metric, job.train.early_stopping.mode)
        if self._source is not None:
            self._loader = Loader(self._source, task.collate, job.data.workers, job.data.prefetch, job.run.seed)

    def due(self, progress: Progress, *, epoch_end: bool, last: bool) -> bool:
        """Whether ``eval.every`` asks for an evaluation after this step; the last step always is evaluated."""
        every = self._job.eval.every
        if every is None or self._source is None:
            return False
        if last:
            return True
        if every.unit == "epoch":
            return epoch_end and progress.position.epoch % int(every.count) == 0
        return progress.step % int(every.count) == 0

    def run(self, adapter: Adapter, world: World) -> Mapping[str, float]:
        """Metrics over the whole evaluation data, equal on every rank."""
        assert self._source is not None
        data = self._job.data
        batch = data.eval_batch or data.micro_batch or data.global_batch
        pieces = shares(len(self._source), batch, rank=world.rank, size=world.size)
        batches = self._loader.batches((0, piece) for piece in pieces)
        try:
            return adapter.evaluate(self._ticking(zip(batches, pieces)), self._job.eval.ema)
        finally:
            batches.close()  # left early by a broken round

    def _ticking(self, batches: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, int]]:
        for batch, piece in batches:
            yield batch, len(piece)
            self._tick()

    def judge(self, progress: Progress, metrics: Mapping[str, float]) -> tuple[bool, bool]:
        """Update ``progress`` by new metrics; (whether they are the best, whether to stop early).

        Raises:
            UsageError: a metric that the job watches was not measured.
        """
        progress.evaluated, progress.evaluated_step = dict(metrics), progress.step
        best = self._job.checkpoint.best
        improved = False
        if best is not None:
            value = _look_up(metrics, best, "checkpoint.best")
            if better(value, progress.best, resolve_mode(best, self._job.checkpoint.best_mode)):
                progress.best, progress.best_step, improved = value, progress.step, True
        rule = self._job.train.early_stopping
        if rule is None:
            return improved, False
        value = _look_up(metrics, rule.metric, "train.early_stopping.metric")
        mode = resolve_mode(rule.metric, rule.mode)
        margin = value + rule.min_delta if mode == "min" else value - rule.min_delta
        if better(margin, progress.stopping_best, mode):
            progress.stopping_best, progress.stale = value, 0
        else:
            progress.stale += 1
        return improved, progress.stale >= rule.patience

    def close(self) -> None:
        if self._source is not None:
            self._loader.close()


def _look_up(metrics: Mapping[str, float], name: str, key: str) -> float:
    if name not in metrics:
        raise UsageError(f"{key} is {name!r}, but the evaluation gave {', '.join(sorted(metrics))}. "
                         "Task.metrics names what is measured")
    return metrics[name]
