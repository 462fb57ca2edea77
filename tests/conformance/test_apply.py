"""What ``apply`` does with reduced gradients: learning rate, clipping, averages, and steps that must not be taken."""

from __future__ import annotations

import math

import numpy as np
import pytest
from pydantic import ValidationError

from hvtrain.errors import Diverged
from tests.support.conformance import Rank, pieces
from tests.support.digits import common
from tests.support.threads import together

SGD = {"optim": {"name": "sgd", "lr": 1.0}}
HALF = {"norm": True, "train": {"precision": "fp16", "ema": 0.5, "loss_scale": 1024.0}}


def distance(one, other):
    return math.sqrt(sum(float(np.square(one[name].astype(np.float64) - other[name]).sum()) for name in one))


def test_the_rate_is_its_base_times_the_factor(kit, make):
    adapters = make(2, **SGD)
    found = []
    for adapter, factor in zip(adapters, (1.0, 0.25)):
        rank = Rank(kit, adapter)
        before = rank.weights()
        rank.gradients()
        assert rank.apply(factor)["lr"] == pytest.approx(factor)
        found.append(distance(rank.weights(), before))
    assert found[1] == pytest.approx(found[0] / 4, rel=1e-5) and found[0] > 0.1


def test_momentum_is_that_of_the_reference(kit, make):
    """v = 0.9 v + g, w = w - lr v: five steps by the optimizer, and by hand from the gradients."""
    plain, heavy = (Rank(kit, make(**sections)[0]) for sections in (SGD, {}))
    weights, speed = plain.weights(), {name: 0.0 for name in plain.weights()}
    for _ in range(5):
        # What the gradient is where the other one stands: by how much a plain step moves from there.
        plain.adapter.restore({**plain.adapter.export(), "model": heavy.adapter.export()["model"]},
                              plain.adapter.scalars())
        before = plain.weights()
        plain.train(1)
        after = plain.weights()
        speed = {name: 0.9 * speed[name] + before[name] - after[name] for name in weights}
        weights = {name: weights[name] - 0.1 * speed[name] for name in weights}
        heavy.train(1)
        assert distance(heavy.weights(), weights) < 1e-5


@pytest.mark.parametrize("limit, clipped", [(0.01, True), (1000.0, False)])
def test_clipping_is_by_the_norm_over_all_gradients_of_all_ranks(kit, make, limit, clipped):
    free = Rank(kit, make(**SGD)[0])
    before = free.weights()
    free.train(1)
    norm = distance(free.weights(), before)  # the rate is 1
    adapters = make(2, **SGD, train={"grad_clip": limit})

    def work(world):
        rank = Rank(kit, adapters[world.rank], world)
        rank.train(1, pieces(12, first=12 * world.rank))
        return rank.metrics["grad_norm"], rank.weights()

    for measured, weights in together(work):
        assert measured == pytest.approx(norm, rel=1e-5)
        assert distance(weights, before) == pytest.approx(limit if clipped else norm, rel=1e-4)


def test_averages_follow_the_weights(kit, make):
    """average = d average + (1 - d) weight, where d = min(decay, (1 + step) / (10 + step))."""
    rank = Rank(kit, make(train={"ema": 0.15})[0])
    expected = rank.weights()
    for step in range(4):
        rank.train(1)
        decay = min(0.15, (1 + step) / (10 + step))
        expected = {name: decay * expected[name] + (1 - decay) * weight for name, weight in rank.weights().items()}
        found = rank.weights("ema")
        assert found.keys() == expected.keys()
        assert distance(found, expected) < 1e-6 and distance(found, rank.weights()) > 1e-4


def test_a_loss_that_is_no_number_is_told_to_all_ranks(kit, make):
    """The loop ends the run there; until then nothing has been applied."""
    adapters = make(2)

    def work(world):
        rank = Rank(kit, adapters[world.rank], world)
        before = rank.tensors()
        reduced = rank.gradients(pieces(12), factor=math.nan if world.rank else 1.0)
        assert rank.tensors() == before and rank.adapter.finite()
        return reduced.loss, reduced.overflow

    for loss, overflow in together(work):
        assert math.isnan(loss) and not overflow


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("spoil", [math.nan, math.inf])
def test_clipping_refuses_a_gradient_that_is_not_finite(kit, make, spoil):
    rank = Rank(kit, make(train={"grad_clip": 1.0})[0])
    before = rank.tensors()
    rank.gradients(factor=spoil)
    with pytest.raises(Diverged, match="step 1 is not finite. Nothing of it was applied"):
        rank.apply()
    assert rank.tensors() == before


@pytest.mark.parametrize("spoil", [1e30, math.inf, math.nan])
def test_an_overflow_on_one_rank_makes_all_leave_the_step_out(kit, make, spoil):
    """With ``precision: fp16``: weights, statistics, moments and averages stay; the scale is halved."""
    if kit.name == "numpy":
        with pytest.raises(ValidationError, match="it has no fp16"):
            make(**HALF)
        return
    if not kit.module.half_works():
        pytest.skip("this build of the framework has no float16 on the CPU")
    adapters = make(2, **HALF)

    def work(world):
        rank = Rank(kit, adapters[world.rank], world)
        share = pieces(12, first=12 * world.rank)
        rank.train(1, share)
        before, scale = rank.tensors(), rank.metrics["loss_scale"]
        reduced = rank.gradients(share, factor=spoil if world.rank else 1.0)
        rank.apply()
        assert reduced.overflow and rank.metrics["skipped"] == 1.0 and rank.tensors() == before
        assert not rank.gradients(share).overflow
        rank.apply()
        assert rank.metrics["skipped"] == 0.0 and rank.metrics["loss_scale"] == scale / 2
        assert rank.tensors() != before
        return rank.state()

    first, second = together(work)
    assert first == second


def test_the_first_weights_of_all_frameworks_are_the_same(kit, make):
    """What the comparisons of this suite rest on."""
    found = Rank(kit, make()[0]).weights()
    assert found.keys() == common.weights().keys()
    for name, array in common.weights().items():
        np.testing.assert_array_equal(found[name], array)
