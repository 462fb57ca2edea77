"""The goodput's arithmetic, by a clock made by hand."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from hvtrain.control.tally import Tally


NOTHING = {"repeated_steps": 0, "seconds_down": 0.0}


def test_nothing_was_trained():
    tally = Tally(step=40)
    tally.end(50.0)
    assert tally.figures(60.0) == {**NOTHING, "steps": 0, "seconds": 0.0, "goodput": None}
    assert tally.figures(60.0, ongoing=3.0)["goodput"] is None


def test_one_step():
    tally = Tally()
    tally.stepped(10.0, from_step=0, down_since=None, repeated=0)
    tally.step = 1
    assert tally.figures(10.0)["goodput"] is None  # no time has passed
    assert tally.figures(10.5) == {**NOTHING, "steps": 1, "seconds": 0.5, "goodput": 1.0}


def test_a_run_without_a_fault_that_went_on_from_a_checkpoint():
    tally = Tally()
    tally.stepped(10.0, from_step=5000, down_since=None, repeated=0)
    tally.step = 5101
    tally.end(20.0)
    assert tally.figures(99.0) == {**NOTHING, "steps": 101, "seconds": 10.0, "goodput": 1.0}


def test_an_outage():
    tally = Tally()
    tally.stepped(0.0, from_step=0, down_since=None, repeated=0)
    tally.stepped(5.4, from_step=50, down_since=5.0, repeated=0)
    tally.step = 97
    found = tally.figures(10.0)
    assert (found["steps"], found["seconds_down"], found["goodput"]) == (97, 0.4, 0.96)


def test_a_rollback_costs_its_steps_as_well():
    """100 steps of 0.1 s, 1 s down, 20 of them again: the first of these ended the outage and is in its time."""
    tally = Tally()
    tally.stepped(0.1, from_step=0, down_since=None, repeated=0)
    tally.stepped(11.0, from_step=80, down_since=10.0, repeated=20)
    tally.step = 200
    found = tally.figures(11.0 + 119 * 0.1)
    assert found["repeated_steps"] == 20 and found["steps"] == 200
    # 218 steps were taken in 21.8 s: 0.1 s each
    assert found["goodput"] == pytest.approx(1 - (1.0 + 19 * 0.1) / 22.8, abs=1e-4)


def test_what_a_start_repeats_of_an_earlier_one_is_not_charged_to_it():
    tally = Tally()
    tally.stepped(1.0, from_step=80, down_since=0.5, repeated=20)
    tally.step = 120
    assert tally.figures(5.0) == {**NOTHING, "steps": 40, "seconds": 4.0, "goodput": 1.0}


def test_an_outage_that_no_step_ended():
    tally = Tally()
    tally.stepped(0.0, from_step=0, down_since=None, repeated=0)
    tally.step = 9
    tally.end(10.0)
    found = tally.figures(12.0, ongoing=4.0)
    assert (found["seconds"], found["seconds_down"], found["goodput"]) == (10.0, 4.0, 0.6)


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10), st.integers(0, 30), st.integers(1, 30)), max_size=8),
       st.floats(0, 5), st.floats(0, 5))
def test_goodput_is_a_share_whatever_happens(outages, rest, ongoing):
    tally, now, step = Tally(), 1.0, 1
    tally.stepped(now, from_step=0, down_since=None, repeated=0)
    for good, down, repeated, steps in outages:
        since, now = now + good, now + good + down
        tally.stepped(now, from_step=max(0, step - repeated), down_since=since, repeated=min(step, repeated))
        step = max(0, step - repeated) + steps
    tally.step = step
    found = tally.figures(now + rest + ongoing, ongoing)
    assert found["goodput"] is None or 0.0 <= found["goodput"] <= 1.0
    assert found["seconds_down"] <= found["seconds"] + 0.002
