"""Dynamic loss scaling: halved at once, doubled after long patience, and kept with the state."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvtrain.comm.loss_scale import GROWTH_INTERVAL, INITIAL, LARGEST, SMALLEST, LossScale


def test_it_begins_at_two_to_the_sixteenth():
    assert LossScale().value == INITIAL == 65536.0 and not LossScale().exhausted


def test_an_overflow_halves_it_and_starts_the_patience_anew():
    scale = LossScale(1024.0)
    for _ in range(GROWTH_INTERVAL - 1):
        scale.good()
    scale.overflow()
    assert scale.value == 512.0
    for _ in range(GROWTH_INTERVAL - 1):
        scale.good()
    assert scale.value == 512.0
    scale.good()
    assert scale.value == 1024.0


def test_it_grows_again_and_again_up_to_a_bound():
    scale = LossScale(LARGEST / 2)
    for _ in range(3 * GROWTH_INTERVAL):
        scale.good()
    assert scale.value == LARGEST


def test_a_larger_one_that_was_asked_for_stays():
    scale = LossScale(2 * LARGEST)
    for _ in range(GROWTH_INTERVAL):
        scale.good()
    assert scale.value == 2 * LARGEST


def test_it_is_exhausted_when_halving_cannot_be_the_remedy():
    scale, halvings = LossScale(), 0
    while not scale.exhausted:
        scale.overflow()
        halvings += 1
    assert halvings == 31 and scale.value < SMALLEST


@given(st.lists(st.one_of(st.just("overflow"), st.integers(1, 3000)), max_size=30))
def test_it_is_a_power_of_two_whatever_happens_and_comes_back_as_it_was(course):
    scale = LossScale()
    for step in course:
        if step == "overflow":
            scale.overflow()
        else:
            for _ in range(step):
                scale.good()
    assert math.frexp(scale.value)[0] == 0.5
    other = LossScale(3.0)
    other.restore(json.loads(json.dumps(scale.export())))
    for _ in range(GROWTH_INTERVAL):
        scale.good(), other.good()
        assert other.value == scale.value


@pytest.mark.parametrize("value", [1.0, 1000.0, 2.0**40])
def test_another_beginning(value):
    scale = LossScale(value)
    scale.overflow()
    assert scale.value == value / 2
