"""The clock agrees with the formulas, and with a slow simulation that knows nothing of how the clock works."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvtrain.errors import UsageError
from hvtrain.hybrid.clock import step_time
from hvtrain.hybrid.schedule import Backward, Forward, bubble, passes, source

NAMES = st.sampled_from(["1f1b", "gpipe"])
TICKS = st.integers(0, 9)


@st.composite
def pipelines(draw):
    """(name, forward, backward, transfer, microbatches), all times in whole ticks."""
    stages = draw(st.integers(1, 6))
    times = st.lists(TICKS, min_size=stages, max_size=stages)
    return (draw(NAMES), draw(times), draw(times), draw(st.lists(TICKS, min_size=stages - 1, max_size=stages - 1)),
            draw(st.integers(1, 9)))


def by_longest_path(name, forward, backward, transfer, microbatches):
    """When each pass ends, by relaxing all dependencies until nothing changes any more (Bellman and Ford)."""
    stages = len(forward)
    needs, ends = [], {}
    for stage in range(stages):
        order = list(passes(name, stage, stages, microbatches))
        for before, one in zip([None, *order], order):
            lasts = (forward if isinstance(one, Forward) else backward)[stage]
            theirs = source(one, stage, stages)
            late = [] if theirs is None else [((theirs, one), transfer[min(stage, theirs)])]
            needs.append(((stage, one), lasts, [((stage, before), 0), *late]))
            ends[stage, one], ends[stage, None] = 0, 0
    changed = True
    while changed:
        changed = False
        for key, lasts, before in needs:
            end = max(ends[other] + wait for other, wait in before) + lasts
            changed, ends[key] = changed or end != ends[key], end
    return ends


@given(pipelines())
def test_it_is_the_longest_path_through_all_dependencies(pipeline):
    name, forward, backward, transfer, microbatches = pipeline
    clock, ends = step_time(*pipeline), by_longest_path(*pipeline)
    assert clock.seconds == max(ends.values())
    assert clock.ready == tuple(ends[stage, Backward(microbatches - 1)] for stage in range(len(forward)))
    assert clock.busy == tuple(microbatches * (f + b) for f, b in zip(forward, backward))


@given(NAMES, st.integers(1, 8), st.integers(1, 16), st.integers(1, 9), st.integers(1, 9))
def test_equal_stages_take_the_time_and_the_bubble_of_the_formulas(name, stages, microbatches, forward, backward):
    clock = step_time(name, [forward] * stages, [backward] * stages, [0] * (stages - 1), microbatches)
    assert clock.seconds == (microbatches + stages - 1) * (forward + backward)
    assert clock.bubble == pytest.approx(bubble(stages, microbatches))
    # The last stage is done first: its gradients can travel while the others still run backward.
    assert clock.ready == tuple(clock.seconds - stage * backward for stage in range(stages))


@given(pipelines())
def test_no_step_is_shorter_than_its_longest_stage_or_than_one_microbatch_alone(pipeline):
    name, forward, backward, transfer, microbatches = pipeline
    clock = step_time(*pipeline)
    assert clock.seconds >= max(clock.busy)
    assert clock.seconds >= sum(forward) + sum(backward) + 2 * sum(transfer)
    assert 0 <= clock.bubble <= 1


def test_a_small_one_by_hand():
    """Stage 0: F0 F1 - - - - B0 B0 - B1 B1; stage 1: - - F0 B0 B0 F1 B1 B1."""
    clock = step_time("1f1b", [1, 1], [2, 2], [1], 2)
    assert (clock.seconds, clock.busy, clock.ready) == (11, (6, 6), (11, 8))


def test_a_transfer_delays_but_keeps_nobody_from_computing():
    """With enough micro-batches on the way, the border costs its delay once each way and no more."""
    slow, fast = (step_time("gpipe", [1, 1], [1, 1], [wait], 8).seconds for wait in (3, 0))
    assert slow == fast + 6


def test_stages_that_compute_at_once_slow_each_other_down():
    """The step by hand, with no wait at the border: both are at work in two stretches of a tick each (see clock.py)."""
    plain, slow = (step_time("1f1b", [1, 1], [2, 2], [0], 2, slowdown) for slowdown in ((), (1.0, 1.5)))
    assert plain.seconds == 9  # 0: F0 F1 - - B0 B0 - B1 B1, 1: - F0 B0 B0 F1 B1 B1
    assert slow.seconds == 9 + 0.5 * 3  # F1 beside F0; B0 beside F1 and half of B1
    assert slow.busy == (6 + 0.5 * 3, 6 + 0.5 * 3) and slow.ready == (10.5, 8.5)


@given(pipelines(), st.floats(1, 3))
def test_as_slow_from_first_to_last_is_a_longer_tick(pipeline, factor):
    name, forward, backward, transfer, microbatches = pipeline
    pipeline = name, forward, backward, [0] * len(transfer), microbatches
    plain, slow = step_time(*pipeline), step_time(*pipeline, [factor] * len(forward))
    assert slow.seconds == pytest.approx(factor * plain.seconds) and slow.ready == pytest.approx(
        [factor * end for end in plain.ready])
    assert slow.busy == pytest.approx([factor * seconds for seconds in plain.busy])


@given(pipelines())
def test_on_one_core_stages_take_turns(pipeline):
    """n at once take n times as long: somebody computes from the first moment to the last, so it is the sum of all."""
    name, forward, backward, transfer, microbatches = pipeline
    together = [float(count) for count in range(1, len(forward) + 1)]
    found = step_time(name, forward, backward, [0] * len(transfer), microbatches, together)
    assert found.seconds == pytest.approx(microbatches * (sum(forward) + sum(backward)))


@pytest.mark.parametrize("arguments, words", [
    (("1f1b", [1.0], [1.0, 2.0], [], 1), "1 stages need"),
    (("1f1b", [1.0, 1.0], [1.0, 1.0], [], 1), "1 of transfer; got 2, 2 and 0"),
    (("1f1b", [-1.0], [1.0], [], 1), "at least 0"),
    (("1f1b", [float("nan")], [1.0], [], 1), "finite"),
    (("zigzag", [1.0], [1.0], [], 1), "hybrid.schedule is one of"),
    (("gpipe", [1.0], [1.0], [], 0), "hybrid.microbatches"),
])
def test_what_cannot_be_is_refused(arguments, words):
    with pytest.raises(UsageError, match=words):
        step_time(*arguments)
