"""Schedules hold to their formulas, and no stage ever waits for itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import hvtrain.hybrid.schedule as module
from hvtrain.errors import UsageError
from hvtrain.hybrid.schedule import (Backward, Forward, bubble, gpipe, one_forward_one_backward, passes, peak, source,
                                     table)

NAMES = st.sampled_from(["1f1b", "gpipe"])
STAGES, MICROBATCHES = st.integers(1, 12), st.integers(1, 20)


def columns(name, stages, microbatches):
    """The drawing's cells: one list for each stage, one entry for each column."""
    rows = [line.split()[2:] for line in table(name, stages, microbatches).splitlines()]
    return [row + ["."] * (max(map(len, rows)) - len(row)) for row in rows]


@given(NAMES, STAGES, MICROBATCHES)
def test_every_microbatch_passes_once_each_way_and_backward_after_forward(name, stages, microbatches):
    for stage in range(stages):
        order = list(passes(name, stage, stages, microbatches))
        assert len(order) == 2 * microbatches == len(set(order))
        for number in range(microbatches):
            assert order.index(Forward(number)) < order.index(Backward(number))


@given(NAMES, STAGES, MICROBATCHES)
def test_both_directions_run_in_the_order_of_the_microbatches(name, stages, microbatches):
    """So that sums of gradients have the same bits whatever the schedule and the number of stages."""
    for stage in range(stages):
        order = list(passes(name, stage, stages, microbatches))
        for kind in ("forward", "backward"):
            assert [one.microbatch for one in order if one.kind == kind] == list(range(microbatches))


@given(STAGES, MICROBATCHES)
def test_the_most_microbatches_in_flight(stages, microbatches):
    for stage in range(stages):
        assert peak("1f1b", stage, stages, microbatches) == min(microbatches, stages - stage)
        assert peak("gpipe", stage, stages, microbatches) == microbatches


@given(NAMES, STAGES, MICROBATCHES)
def test_with_equal_stages_the_idle_share_is_that_of_the_formula(name, stages, microbatches):
    rows = columns(name, stages, microbatches)
    assert len(rows) == stages
    for row in rows:
        assert len(row) == 2 * (microbatches + stages - 1)
        assert row.count(".") / len(row) == pytest.approx(bubble(stages, microbatches))


@given(NAMES, STAGES, MICROBATCHES)
def test_in_the_drawing_every_pass_comes_after_the_one_it_needs(name, stages, microbatches):
    rows = columns(name, stages, microbatches)
    for stage, row in enumerate(rows):
        for one in passes(name, stage, stages, microbatches):
            needed = source(one, stage, stages)
            assert needed is None or rows[needed].index(str(one)) < row.index(str(one))


def test_the_drawings_of_the_documentation_are_what_table_draws():
    for name in ("gpipe", "1f1b"):
        for line in table(name, 3, 4).splitlines():
            assert f"    {line}\n" in module.__doc__


def test_a_small_one_by_hand():
    assert [str(one) for one in one_forward_one_backward(1, 3, 4)] == ["F0", "F1", "B0", "F2", "B1", "F3", "B2", "B3"]
    assert [str(one) for one in gpipe(1, 3, 2)] == ["F0", "F1", "B0", "B1"]
    assert bubble(4, 12) == 0.2 and bubble(1, 5) == 0


@pytest.mark.parametrize("call, words", [
    (lambda: passes("interleaved", 0, 1, 1), "one of 1f1b, gpipe, got 'interleaved'"),
    (lambda: list(passes("1f1b", 2, 2, 1)), "0 to 1 where there are 2, got 2"),
    (lambda: list(gpipe(-1, 2, 1)), "got -1"),
    (lambda: peak("gpipe", 0, 1, 0), "hybrid.microbatches must be at least 1, got 0"),
    (lambda: bubble(0, 1), "hybrid.stages must be at least 1, got 0"),
])
def test_what_cannot_be_is_refused(call, words):
    with pytest.raises(UsageError, match=words):
        call()
