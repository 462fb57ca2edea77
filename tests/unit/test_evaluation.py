"""When to evaluate, what is the best, and when to stop."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hvtrain import ArraySource, Job, Task
from hvtrain.data.sampler import Position
from hvtrain.engine.world import SoloWorld
from hvtrain.errors import UsageError
from hvtrain.evaluation import Evaluator
from hvtrain.progress import Progress


class Ten(Task):
    def data(self, split):
        return ArraySource(np.arange(10))


class NoEval(Task):
    def data(self, split):
        return None if split == "eval" else ArraySource(np.arange(10))


def evaluator(task=None, **sections):
    return Evaluator(Job.model_validate({"task": {"target": "t:T"}, **sections}), task or Ten())


def due(found, step=0, epoch=0, epoch_end=False, last=False):
    return found.due(Progress(step=step, position=Position(epoch, 0)), epoch_end=epoch_end, last=last)


def test_due_by_epochs():
    found = evaluator(eval={"every": "2 epochs"})
    assert due(found, step=9, epoch=2, epoch_end=True)
    assert not due(found, step=9, epoch=1, epoch_end=True) and not due(found, step=9, epoch=2)


def test_due_by_steps_and_always_at_the_last():
    found = evaluator(eval={"every": "3 steps"})
    assert [due(found, step=step) for step in (1, 2, 3, 6)] == [False, False, True, True]
    assert due(found, step=7, last=True)


@pytest.mark.parametrize("task, every", [(NoEval(), "1 epoch"), (Ten(), None)])
def test_never_due(task, every):
    assert not due(evaluator(task, eval={"every": every}), step=1, epoch=1, epoch_end=True, last=True)


@pytest.mark.parametrize("sections", [{"checkpoint": {"best": "loss"}},
                                      {"train": {"early_stopping": {"metric": "loss"}}}])
def test_watching_a_metric_without_data_is_a_mistake(sections):
    with pytest.raises(UsageError, match=r"data\('eval'\) is None"):
        evaluator(NoEval(), **sections)


def judge(values, metric="loss", **sections):
    """The (improved, stop) of each value in turn."""
    found, progress = evaluator(**sections), Progress()
    results = []
    for step, value in enumerate(values):
        progress.step = step
        results.append(found.judge(progress, {metric: value}))
    return results, progress


@pytest.mark.parametrize("metric, mode, improved", [
    ("loss", "auto", [True, True, False, False, True]), ("accuracy", "auto", [True, False, True, False, False]),
    ("loss", "max", [True, False, True, False, False])])
def test_best(metric, mode, improved):
    results, progress = judge([3.0, 2.0, 4.0, 4.0, 1.0], metric, checkpoint={"best": metric, "best_mode": mode})
    assert [found for found, _ in results] == improved
    assert progress.best == (1.0 if improved[-1] else 4.0)
    assert progress.best_step == max(n for n, found in enumerate(improved) if found)
    assert (progress.evaluated, progress.evaluated_step) == ({metric: 1.0}, 4)


def test_without_best_nothing_improves():
    assert judge([3.0, 2.0])[0] == [(False, False)] * 2


def stops(values, **rule):
    return [stop for _, stop in judge(values, rule.get("metric", "loss"), train={
        "early_stopping": {"metric": "loss", **rule}})[0]]


def test_early_stopping_counts_evaluations_without_improvement():
    assert stops([3, 4, 5], patience=2) == [False, False, True]
    assert stops([3, 4, 2, 3, 3], patience=2) == [False, False, False, False, True]


def test_an_equal_value_is_no_improvement():
    assert stops([3, 3], patience=1) == [False, True]


def test_min_delta_must_be_exceeded_and_small_steps_do_not_move_the_mark():
    assert stops([3.0, 2.95, 2.91], patience=2, min_delta=0.1) == [False, False, True]
    assert stops([3.0, 2.95, 2.85], patience=2, min_delta=0.1) == [False, False, False]
    assert stops([0.5, 0.55, 0.59], metric="accuracy", patience=2, min_delta=0.1) == [False, False, True]


def test_not_a_number_is_no_improvement_and_is_beaten_by_any():
    assert stops([math.nan, math.nan, math.nan], patience=3) == [False, False, True]
    assert stops([math.nan, 5.0, math.nan], patience=2) == [False, False, False]


def test_stopping_and_best_may_watch_different_metrics_and_survive_a_checkpoint():
    found = evaluator(checkpoint={"best": "accuracy"}, train={"early_stopping": {"metric": "loss", "patience": 2}})
    progress = Progress()
    assert found.judge(progress, {"accuracy": 0.5, "loss": 1.0}) == (True, False)
    assert found.judge(progress, {"accuracy": 0.6, "loss": 2.0}) == (True, False)
    progress = Progress.from_json(progress.to_json())
    assert found.judge(progress, {"accuracy": 0.4, "loss": 3.0}) == (False, True)


def test_a_metric_that_was_not_measured_is_named_with_those_that_were():
    with pytest.raises(UsageError, match="'f1'.*gave accuracy, loss"):
        evaluator(checkpoint={"best": "f1"}).judge(Progress(), {"loss": 1, "accuracy": 1})


@pytest.mark.parametrize("size", [1, 2, 3, 11])
def test_all_ranks_together_evaluate_every_sample_once(size):
    class World(SoloWorld):
        def __init__(self, rank):
            self.rank, self.size = rank, size

    class Adapter:
        def evaluate(self, batches, ema):
            for batch, count in batches:
                assert len(batch) == count <= 2
                seen.extend(batch.tolist())
            return {"loss": 0.0}

    seen = []
    found = evaluator(data={"micro_batch": 2, "global_batch": 4})
    for rank in range(size):
        found.run(Adapter(), World(rank))
    found.close()
    assert sorted(seen) == list(range(10))
