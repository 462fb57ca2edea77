"""The best split is the best of all splits: held against brute force, for devices of any speed and memory."""

from __future__ import annotations

import random
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import hvtrain.hybrid.partition as module
from hvtrain.errors import UsageError
from hvtrain.hybrid.costs import LayerCost, ModelCosts
from hvtrain.hybrid.partition import Device, appraise, partition
from hvtrain.hybrid.schedule import peak

SPEEDS = (0.5, 1.0, 1.5, 3.0)


def model(layers, state=0.0, **rest):
    """Of (forward, backward, parameters, saved, output) for each layer."""
    return ModelCosts(tuple(LayerCost(f"layer{i}", *sizes) for i, sizes in enumerate(layers)), 4, "cpu", state, **rest)


def evenly(*times):
    """A model of which only the time forward counts."""
    return model([(time, 0.0, 0, 0, 0) for time in times])


def by_hand(costs, devices, split, in_flight, recompute=False, repeats=None):
    """(times, memory) of each stage, straight from the definition."""
    times, memory, first = [], [], 0
    for device, length, count, twice in zip(devices, split, in_flight, repeats or [recompute] * len(devices)):
        inside = costs.layers[first:first + length]
        enters = costs.layers[first - 1].output if first else costs.input
        times.append(sum(layer.forward * (1 + (recompute and twice)) + layer.backward for layer in inside) / device.speed)
        saved = sum(layer.saved for layer in inside)
        memory.append(int(sum(layer.parameters for layer in inside) * (2 + costs.state))
                      + (count * enters + saved if recompute else count * saved))
        first += length
    return tuple(times), tuple(memory)


def brute_force(costs, devices, in_flight, recompute=False, repeats=None):
    """The least (longest stage, sum of squares, split) of all splits that fit; None if there is none."""
    layers, best = len(costs.layers), None
    for cuts in combinations(range(1, layers), len(devices) - 1):
        split = tuple(b - a for a, b in zip((0, *cuts), (*cuts, layers)))
        times, memory = by_hand(costs, devices, split, in_flight, recompute, repeats)
        if all(device.memory is None or used <= device.memory for used, device in zip(memory, devices)):
            found = (max(times), sum(time**2 for time in times), split)
            best = found if best is None else min(best, found)
    return best


def random_case(seed):
    """Up to 9 layers with whole numbers of seconds, so that sums have no rounding and equal ones are equal."""
    pick = random.Random(seed)
    layers = pick.randint(1, 9)
    stages = pick.randint(1, min(layers, 5))
    most = pick.choice([1, 3, 50])  # small numbers make ties
    costs = model(
        [(float(pick.randint(0, most)), float(pick.randint(0, most)), *(pick.randint(0, 40) for _ in range(3)))
         for _ in range(layers)],
        state=pick.choice([0.0, 1.0, 2.0]), input=pick.randint(0, 40))
    equal, limited = pick.random() < 0.3, pick.random() < 0.7
    devices = [Device(1.0 if equal else pick.choice(SPEEDS), pick.randint(40, 900) if limited else None)
               for _ in range(stages)]
    name, microbatches = pick.choice(["1f1b", "gpipe"]), pick.randint(1, 6)
    in_flight = [peak(name, stage, stages, microbatches) for stage in range(stages)]
    recompute = pick.random() < 0.5
    return costs, devices, in_flight, recompute, pick.choice([None, [pick.random() < 0.5 for _ in devices]])


@pytest.mark.parametrize("rows", [64, 2])
def test_a_thousand_random_models_have_the_optimum_of_brute_force(rows, monkeypatch):
    """The same longest stage exactly, the same evenness; where nothing fits, both say so. All kinds do occur."""
    monkeypatch.setattr(module, "_ROWS", rows)  # tables are filled some rows at a time: all in one go, and in several
    impossible = several = 0
    for seed in range(1000):
        costs, devices, in_flight, recompute, repeats = random_case(seed)
        how = {"in_flight": in_flight, "recompute": recompute, "repeats": repeats}
        best = brute_force(costs, devices, **how)
        if best is None:
            impossible += 1
            with pytest.raises(UsageError, match="does not fit"):
                partition(costs, devices, **how)
            continue
        found = partition(costs, devices, **how)
        times, memory = by_hand(costs, devices, found.split, **how)
        assert found.longest == max(times) == best[0], seed
        assert sum(time**2 for time in times) == pytest.approx(best[1], rel=1e-5), seed
        assert (found.times, found.memory) == (times, memory), seed
        assert all(device.memory is None or used <= device.memory for used, device in zip(memory, devices)), seed
        several += len(devices) > 1
    assert 100 < impossible < 600 and several > 300


@given(st.lists(st.integers(0, 5), min_size=2, max_size=9), st.data())
def test_of_equally_good_splits_the_most_even_and_then_the_first_is_taken(times, data):
    stages = data.draw(st.integers(2, len(times)))
    costs, devices = evenly(*map(float, times)), [Device()] * stages
    assert partition(costs, devices, in_flight=[1] * stages).split == brute_force(costs, devices, [1] * stages)[2]


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=40), st.data())
def test_any_times_give_a_whole_split_that_no_moved_border_makes_shorter(times, data):
    stages = data.draw(st.integers(1, min(len(times), 6)))
    devices = data.draw(st.lists(st.builds(Device, st.floats(0.1, 10)), min_size=stages, max_size=stages))
    costs, in_flight = evenly(*times), [1] * stages
    found = partition(costs, devices, in_flight=in_flight)
    assert sum(found.split) == len(times) and min(found.split) >= 1
    for border in range(stages - 1):
        for step in (-1, 1):
            moved = list(found.split)
            moved[border] += step
            moved[border + 1] -= step
            if min(moved) >= 1:
                assert appraise(costs, devices, moved, in_flight=in_flight).longest >= found.longest * (1 - 1e-12)


@given(st.integers(0, 10**6), st.integers(-40, 40))
def test_the_unit_of_time_does_not_matter(seed, power):
    """Seconds or microseconds: the same split."""
    costs, devices, in_flight, *_ = random_case(seed)
    devices = [Device(device.speed) for device in devices]
    other = model([(layer.forward * 2.0**power, layer.backward * 2.0**power, 0, 0, 0) for layer in costs.layers])
    assert partition(costs, devices, in_flight=in_flight).split == partition(other, devices, in_flight=in_flight).split


@given(st.integers(0, 10**6))
def test_more_memory_is_never_worse(seed):
    costs, devices, in_flight, recompute, _ = random_case(seed)
    try:
        limited = partition(costs, devices, in_flight=in_flight, recompute=recompute)
    except UsageError:
        return
    free = partition(costs, [Device(device.speed) for device in devices], in_flight=in_flight, recompute=recompute)
    assert free.longest <= limited.longest


def test_a_faster_device_gets_more_layers():
    assert partition(evenly(*[1.0] * 8), [Device(1.0), Device(3.0)], in_flight=[1, 1]).split == (2, 6)


def test_decimal_times_of_equal_layers_tie_in_spite_of_rounding():
    """0.1 + 0.1 + 0.1 is not 0.3, but layers that are equal split evenly."""
    assert partition(evenly(*[0.1] * 7), [Device()] * 3, in_flight=[1] * 3).split == (2, 2, 3)
    for layers in range(2, 25):
        for stages in range(2, min(layers, 7)):
            devices, in_flight = [Device()] * stages, [1] * stages
            split = partition(evenly(*[0.1] * layers), devices, in_flight=in_flight).split
            assert split == partition(evenly(*[1.0] * layers), devices, in_flight=in_flight).split
            assert max(split) - min(split) <= 1


def test_activations_in_flight_push_layers_to_later_stages():
    """Equal layers, but with 1f1b the first stage keeps four micro-batches: it cannot have as many of them."""
    costs = model([(1.0, 1.0, 0, 100, 10)] * 8)
    split = partition(costs, [Device(memory=400)] * 4, in_flight=[4, 3, 2, 1]).split
    assert split == (1, 1, 2, 4)


def test_recomputation_keeps_what_enters_a_stage_and_takes_longer():
    costs = model([(1.0, 2.0, 0, 100, 10)] * 4, input=7)
    found = appraise(costs, [Device()] * 2, (2, 2), in_flight=[2, 1], recompute=True)
    assert found.memory == (2 * 7 + 200, 10 + 200) and found.times == (8.0, 8.0)
    kept = appraise(costs, [Device()] * 2, (2, 2), in_flight=[2, 1])
    assert kept.memory == (400, 200) and kept.times == (6.0, 6.0)


def test_smaller_microbatches_take_less_memory_and_time():
    costs = model([(1.0, 2.0, 10, 100, 10)] * 2, state=2.0)
    found = appraise(costs, [Device()], (2,), in_flight=[3], microbatch=1)  # measured with 4
    assert found.memory == (2 * (10 * 4 + 3 * 25),)
    assert found.times == (pytest.approx(6.0 / 4),)


def test_what_does_not_fit_says_how_much_is_needed_and_what_there_is():
    costs = model([(1.0, 1.0, 10**9, 10**9, 1)] * 4, state=2.0)
    devices = [Device(memory=8 * 10**9, name="cuda:0"), Device(memory=9 * 10**9, name="cuda:1")]
    with pytest.raises(UsageError) as error:
        partition(costs, devices, in_flight=[2, 1])
    assert str(error.value) == (
        "The model does not fit 2 devices in any split. At least, with hybrid.split=[2, 2], stage 0 (layers layer0 to "
        "layer1) needs 12 GB, and its device (cuda:0) has 8 GB. Set more stages (hybrid.stages=3), or "
        "hybrid.recompute=true, or smaller micro-batches (a larger hybrid.microbatches), or hybrid.memory, if the "
        "devices have more.")


def test_advice_is_left_out_that_would_not_help():
    """One layer alone is too large by its parameters: neither more stages nor smaller micro-batches help."""
    costs = model([(1.0, 1.0, 50, 0, 0), (1.0, 1.0, 1, 0, 0)])
    with pytest.raises(UsageError) as error:
        partition(costs, [Device(memory=60)] * 2, in_flight=[1, 1])
    assert str(error.value) == (
        "The model does not fit 2 devices in any split. At least, with hybrid.split=[1, 1], stage 0 (layer layer0) "
        "needs 100 B, and its device has 60 B. Set hybrid.memory, if the devices have more.")


@pytest.mark.parametrize("call, words", [
    (lambda: partition(evenly(1.0, 1.0), [Device()] * 3, in_flight=[1] * 3), "3 stages need .* into 2 only"),
    (lambda: partition(evenly(1.0), [], in_flight=[]), "micro-batches in flight"),
    (lambda: partition(evenly(1.0), [Device()], in_flight=[0]), "at least 1; got \\[0\\]"),
    (lambda: partition(evenly(1.0), [Device(speed=0.0)], in_flight=[1]), "speed above 0"),
    (lambda: partition(evenly(1.0), [Device(memory=0)], in_flight=[1]), "memory above 0"),
    (lambda: partition(evenly(-1.0), [Device()], in_flight=[1]), "finite, at least 0"),
    (lambda: partition(evenly(1.0), [Device()], in_flight=[1], microbatch=0), "at least 1 sample"),
    (lambda: appraise(evenly(1.0, 1.0), [Device()] * 2, [1, 2], in_flight=[1, 1]), "3 layers in 2 stages, but the model has 2 layers .1: "),
    (lambda: appraise(evenly(1.0, 1.0), [Device()] * 2, [2], in_flight=[1, 1]), "makes 1 stages, but there are 2"),
    (lambda: appraise(evenly(1.0, 1.0), [Device()] * 2, [2, 0], in_flight=[1, 1]), "needs one at least"),
    (lambda: appraise(model([(1.0, 1.0, 5, 0, 0)]), [Device(memory=1)], [1], in_flight=[1]), "with hybrid.split=.1."),
])
def test_what_cannot_be_is_refused(call, words):
    with pytest.raises(UsageError, match=words):
        call()
