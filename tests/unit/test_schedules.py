"""Schedules: factors at the places that matter, and the same factor for the same step."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, strategies as st

from hvtrain import schedules
from hvtrain.config import Every, ScheduleConfig, Steps


def make(total=100, per_epoch=10, **config):
    return schedules.make(ScheduleConfig(**config), total, per_epoch)


def test_constant():
    assert [make()(step) for step in (0, 50, 99)] == [1, 1, 1]


def test_warmup_rises_from_above_zero_to_one():
    factor = make(warmup=Steps.parse("4 steps"))
    assert [factor(step) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])


@pytest.mark.parametrize("warmup, steps", [("5%", 5), ("1 epoch", 10), (7, 7), ("100%", 100), ("900 steps", 100)])
def test_units_of_the_warmup(warmup, steps):
    factor = make(warmup=Steps.parse(warmup))
    assert all(factor(step) < 1 for step in range(steps)) and factor(steps) == 1


def test_linear_and_cosine_go_from_one_to_final():
    for name in ("linear", "cosine"):
        factor = make(name=name, final=0.1, warmup=Steps.parse(20))
        assert factor(20) == 1 and factor(100) == pytest.approx(0.1) and factor(60) == pytest.approx(0.55)
        assert factor(1000) == pytest.approx(0.1)  # more steps than planned: it stays there


def test_cosine_is_the_cosine():
    assert make(name="cosine")(25) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


@pytest.mark.parametrize("every, at", [("10 steps", 10), ("2 epochs", 20)])
def test_step_reduces_at_intervals_counted_from_the_start(every, at):
    factor = make(name="step", every=Every.parse(every), factor=0.5)
    assert [factor(at - 1), factor(at), factor(2 * at)] == [1, 0.5, 0.25]
    warm = make(name="step", every=Every.parse(every), factor=0.5, warmup=Steps.parse(5))
    assert [warm(at - 1), warm(at)] == [1, 0.5]


def test_a_run_of_one_step():
    for name in ("constant", "linear", "cosine"):
        assert make(1, 1, name=name)(0) == 1


@given(name=st.sampled_from(["constant", "linear", "cosine"]), total=st.integers(1, 500), warmup=st.integers(0, 600),
       final=st.floats(0, 1))
def test_any_schedule_stays_within_its_bounds_and_falls_after_the_warmup(name, total, warmup, final):
    factor = make(total, 10, name=name, warmup=Steps.parse(warmup), final=final)
    values = [factor(step) for step in range(total)]
    assert all(0 < value <= 1 + 1e-12 or (final == 0 and value >= 0) for value in values)
    rising, falling = values[:warmup], values[warmup:]
    assert rising == sorted(rising)
    assert all(a >= b - 1e-12 for a, b in zip(falling, falling[1:]))
    assert values == [factor(step) for step in range(total)]
