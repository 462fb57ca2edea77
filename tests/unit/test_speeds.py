"""What was measured under some conditions says what others would give."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvtrain.errors import UsageError
from hvtrain.hybrid.costs import LayerCost, ModelCosts
from hvtrain.hybrid.speeds import Speeds, along, seconds, slowest

SECONDS = st.floats(0, 10)


def costs(batch, *layers, update=0.0):
    """Layers of (forward, backward) seconds; 10 bytes a sample."""
    return ModelCosts(tuple(LayerCost(f"layer{number}", *times, 1000, 10 * batch, 10 * batch)
                            for number, times in enumerate(layers)), batch, "cpu", update=update, input=10 * batch)


@given(st.lists(st.tuples(SECONDS, SECONDS), min_size=2, max_size=4), st.integers(1, 300))
def test_between_and_beyond_what_was_measured(times, samples):
    """On the line between two; with more samples never less time; with fewer never more, nor less than in proportion."""
    points = [costs(4 * 4**number, each) for number, each in enumerate(times)]
    found = along(points, samples)
    assert found.batch == samples and found.layers[0].saved == found.input == 10 * samples
    for which in ("forward", "backward"):
        value = getattr(found.layers[0], which)
        known = {point.batch: getattr(point.layers[0], which) for point in points}
        below, above = [n for n in known if n <= samples], [n for n in known if n >= samples]
        if below and above:
            ends = known[max(below)], known[min(above)]
            assert min(ends) - 1e-9 <= value <= max(ends) + 1e-9
        elif below:
            assert value >= known[max(below)]
        else:
            assert known[4] * samples / 4 - 1e-9 <= value <= known[4]


def test_each_layer_has_a_line_of_its_own():
    """A large layer takes most of its time to read its weights, however few the samples are; a small one none."""
    large, small = (8.0, 8.0), (1.0, 1.0)
    found = along([costs(10, large, small), costs(20, (10.0, 10.0), (2.0, 2.0))], 15)
    assert [layer.forward for layer in found.layers] == [9.0, 1.5]
    fewer = along([costs(10, large, small), costs(20, (10.0, 10.0), (2.0, 2.0))], 5)
    assert [layer.forward for layer in fewer.layers] == [7.0, 0.5]


def test_one_measurement_is_scaled():
    assert along([costs(10, (1.0, 2.0))], 5).layers[0].backward == 1.0
    with pytest.raises(UsageError, match="got 0"):
        along([costs(10, (1.0, 2.0))], 0)
    with pytest.raises(ValueError):
        Speeds(())


def test_threads_share_a_part_of_the_computation():
    """Amdahl's law, layer by layer: with two threads 0.75 of the time, so half of it is shared, and a quarter is saved by
    four threads once more half of that."""
    speeds = Speeds((costs(8, (1.0, 4.0)),), threaded=(costs(8, (0.75, 4.0), update=1.0),), threads=2)
    assert speeds.at(8, 1).layers[0].forward == 1.0
    assert speeds.at(8, 2).layers[0].forward == pytest.approx(0.75) and speeds.at(8, 2).layers[0].backward == 4.0
    assert speeds.at(8, 4).layers[0].forward == pytest.approx(0.5 + 0.5 / 4)
    best = Speeds((costs(8, (1.0, 4.0)),), threaded=(costs(8, (0.1, 1.0)),), threads=2)
    assert best.at(8, 64).layers[0].forward > 0  # faster than threads can make it, but never in no time


def test_others_that_compute_take_their_share():
    """Four at once take twice as long; two a third of that more, for they have one other instead of three."""
    speeds = Speeds((costs(8, (1.0, 2.0), update=1.0),), beside=(costs(8, (2.0, 4.0), update=3.0),), threads=4, at_once=4)
    assert speeds.slowdown(8, 1) == 1.0 and speeds.slowdown(8, 4) == pytest.approx(2.0)
    assert speeds.slowdown(8, 2) == pytest.approx(1 + 1 / 3) and speeds.update_slowdown(8, 4) == pytest.approx(3.0)
    assert speeds.slowdown(99, 4) == speeds.slowdown(1, 4) == pytest.approx(2.0)
    quicker = Speeds((costs(8, (1.0, 2.0)),), beside=(costs(8, (0.9, 2.0)),), threads=2, at_once=2)
    assert quicker.slowdown(8, 2) == 1.0  # noise
    assert Speeds((costs(8, (1.0, 2.0)),)).slowdown(8, 5) == 1.0  # devices of their own


def test_processes_that_measure_at_once_are_each_others_slowdown():
    """With four cores and two at once, two threads each: against what one alone takes with two threads."""
    speeds = Speeds((costs(8, (4.0, 4.0)),), threaded=(costs(8, (1.0, 1.0)),), beside=(costs(8, (3.0, 3.0)),), threads=4,
                    at_once=2, each=2)
    assert seconds(speeds.at(8, 2)) == pytest.approx(4.0)
    assert speeds.slowdown(8, 2, 2) == pytest.approx(1.5)
    assert speeds.slowdown(8, 2, 1) == pytest.approx(1.25)  # the other keeps one core busy


def test_the_slowest_counts():
    quick, slow = (costs(8, (1.0, 1.0)), costs(32, (2.0, 2.0))), (costs(8, (1.0, 2.0)), costs(32, (1.0, 1.0)))
    assert slowest([quick, slow]) == (slow[0], quick[1]) and slowest([quick, slow[:1]]) == (slow[0],)
