"""Which checkpoints stay."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvtrain.checkpoint.policy import Retention, best, better, resolve_mode
from hvtrain.errors import UsageError


@dataclass(frozen=True)
class Fake:
    step: int
    epoch: int = 0
    metrics: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Every:
    count: float
    unit: str


def steps(items):
    return [item.step for item in items]


@pytest.mark.parametrize("metric", ["bits_per_character", "lossless", ""])
def test_auto_does_not_guess(metric):
    """A guess for "bits_per_character" once was max: it would have kept the worst checkpoint."""
    with pytest.raises(UsageError, match="better when higher or when lower"):
        resolve_mode(metric)


@pytest.mark.parametrize("metric, mode", [
    ("loss", "min"), ("val_loss", "min"), ("eval/Loss", "min"), ("error", "min"), ("top1_error", "min"),
    ("perplexity", "min"), ("accuracy", "max"), ("top1_accuracy", "max"),
    ("f1", "max")])
def test_auto_mode(metric, mode):
    assert resolve_mode(metric) == mode
    assert resolve_mode(metric, "min") == "min" and resolve_mode(metric, "max") == "max"


def test_better():
    assert better(1.0, 2.0, "min") and not better(1.0, 2.0, "max") and not better(1.0, 1.0, "min")
    assert better(1.0, None, "max") and better(1.0, math.nan, "max") and better(-math.inf, None, "max")
    assert not better(math.nan, None, "max") and not better(math.nan, 1.0, "min")
    with pytest.raises(UsageError):
        better(1.0, 2.0, "auto")
    with pytest.raises(UsageError):
        resolve_mode("loss", "lowest")


def test_best_is_the_earliest_of_equals_and_never_nan():
    items = [Fake(3, metrics={"loss": 1.0}), Fake(1, metrics={"loss": math.nan}),
             Fake(2, metrics={"loss": 1.0}), Fake(4)]
    assert best(items, "loss").step == 2 and best(items, "accuracy") is None


def test_keep_last_best_and_every():
    items = [Fake(step, metrics={"loss": abs(step - 200.0)}) for step in range(100, 1100, 100)]
    assert steps(Retention(keep=2).doomed(items)) == list(range(100, 900, 100))
    assert steps(Retention(keep=2, best_metric="loss").doomed(items)) == [100, *range(300, 900, 100)]
    assert steps(Retention(keep=1, keep_every=400).doomed(items)) == [100, 200, 300, 500, 600, 700, 900]
    # 300 does not divide 1000: the first at or after each multiple
    uneven = [Fake(step) for step in range(300, 3600, 300)]
    kept = {300 * i for i in range(1, 12)} - set(steps(Retention(keep=1, keep_every=1000).doomed(uneven)))
    assert kept == {1200, 2100, 3000, 3300}


def test_keep_every_epochs():
    items = [Fake(step, epoch=step // 10) for step in range(5, 65, 5)]
    kept = set(steps(items)) - set(steps(Retention(keep=1, keep_every=Every(2, "epoch")).doomed(items)))
    assert kept == {20, 40, 60}


@pytest.mark.parametrize("wrong", [dict(keep=0), dict(keep_every=0), dict(keep_every=Every(1, "second")),
                                   dict(best_metric="loss", best_mode="low")])
def test_impossible_rules(wrong):
    with pytest.raises(UsageError):
        Retention(**wrong)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 50), st.floats()), max_size=25, unique_by=lambda item: item[0]),
       st.integers(1, 5), st.none() | st.integers(1, 20), st.sampled_from(["min", "max"]))
def test_pruning_as_one_goes_keeps_the_newest_the_best_and_every_m_th(described, keep, every, mode):
    rules = Retention(keep=keep, keep_every=every, best_metric="m", best_mode=mode)
    alive: list[Fake] = []
    everything = []
    for step, value in sorted(described):
        item = Fake(step, metrics={"m": value})
        alive.append(item)
        everything.append(item)
        doomed = rules.doomed(alive)
        alive = [item for item in alive if item not in doomed]
        assert steps(alive)[-keep:] == steps(everything)[-keep:]
        winner = best(everything, "m", mode)
        assert winner is None or winner in alive
        assert rules.doomed(alive) == []
    if every is not None:
        assert {step // every for step in steps(everything)} - {0} <= {step // every for step in steps(alive)}
