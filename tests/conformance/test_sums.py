"""The gradient is that of the global batch, however its samples lie in micro-batches and on ranks."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.conformance import BUCKETS, SAMPLES, Rank, load, pieces
from tests.support.digits import common
from tests.support.threads import together

PLAIN = {"optim": {"name": "sgd", "lr": 1.0}}
"""The weights move by the gradient itself."""


def moved(rank):
    """The gradient that the step just taken had."""
    return {name: common.weights()[name] - array for name, array in rank.weights().items()}


def close(one, other, tolerance=1e-6):
    assert one.keys() == other.keys() and one
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=0, atol=tolerance, err_msg=name)


@pytest.fixture(scope="module")
def wanted():
    """Loss and gradient by the reference."""
    numpy = load("numpy")
    rank = Rank(numpy, numpy.adapter({}, **PLAIN))
    return rank.train(1)[0], moved(rank)


def test_the_reference_is_right(wanted):
    """Its gradients by hand are those that finite differences give, in double precision."""
    images, labels = (part[:SAMPLES] for part in common.training())
    weights = {name: array.astype(np.float64) for name, array in common.weights().items()}
    random = np.random.default_rng(0)
    for name, gradient in wanted[1].items():
        direction = random.standard_normal(gradient.shape)
        ends = []
        for sign in (1, -1):
            shifted = {**weights, name: weights[name] + sign * 1e-5 * direction}
            ends.append(common.losses(common.outputs(shifted, images.astype(np.float64)), labels).mean())
        assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(float((gradient * direction).sum()), abs=2e-5), name


@pytest.mark.parametrize("sizes", [(24,), (12, 12), (1, 23), (7, 8, 9)])
def test_micro_batches_change_nothing(kit, make, wanted, sizes):
    rank = Rank(kit, make(**PLAIN)[0])
    loss, = rank.train(1, pieces(*sizes))
    assert loss == pytest.approx(wanted[0], abs=1e-6)
    close(moved(rank), wanted[1])


@pytest.mark.parametrize("shares", [((12,), (12,)), ((5, 5), (14,)), ((24,), ()), ((), (11, 13)),
                                    ((9,), (3, 4), (8,))])
def test_ranks_change_nothing(kit, make, wanted, shares):
    """Shares of any size, also none: a rank without samples takes part in every sum all the same."""
    adapters = make(len(shares), **PLAIN)

    def work(world):
        rank = Rank(kit, adapters[world.rank], world)
        loss, = rank.train(1, pieces(*shares[world.rank], first=sum(map(sum, shares[:world.rank]))))
        return loss, moved(rank), rank.tensors(), sorted(world.sums)

    (loss, gradient, tensors, sums), *others = together(work, len(shares))
    assert loss == pytest.approx(wanted[0], abs=1e-6)
    close(gradient, wanted[1])
    for other in others:
        assert (other[0], *other[2:]) == (loss, tensors, sums), "all ranks hold the same bits, by the same sums"
    assert [name for name, _ in sums] == [f"grad.{number}" for number in range(BUCKETS)]


def test_flags_are_summed(kit, make):
    adapters = make(2)

    def work(world):
        rank = Rank(kit, adapters[world.rank], world)
        flags = (float(world.rank), 1.0, 0.0, 2.0 + world.rank)
        found = rank.gradients([range(24)] if world.rank else [], flags=flags).flags, rank.gradients(flags=(1.0,)).flags
        return found

    for first, second in together(work):
        assert first == (1.0, 2.0, 0.0, 5.0) and second == (2.0, 0.0, 0.0, 0.0), "of this step, not of the one before"


def test_statistics_are_averaged_by_the_ranks_shares(kit, make):
    """Ranks with 16 and 8 of 24 add what they have found, each by its part; a third has none, and the same."""
    adapters, shares = make(3, norm=True), [pieces(16), pieces(8, first=16), []]
    names = "norm/mean", "norm/variance"
    before, expected = Rank(kit, adapters[0]).weights(), Rank(kit, adapters[0]).weights()
    for adapter, share in zip(adapters, shares[:2]):
        alone, start = Rank(kit, adapter), (adapter.export(), adapter.scalars())
        alone.gradients(share, total=len(share[0]))  # as if these were all samples
        alone.apply()
        for name in names:
            expected[name] = expected[name] + len(share[0]) / SAMPLES * (alone.weights()[name] - before[name])
        adapter.restore(*start)

    def work(world):
        rank = Rank(kit, adapters[world.rank], world)
        rank.train(1, shares[world.rank])
        return rank.weights(), rank.tensors()

    (found, tensors), *others = together(work, 3)
    assert all(other[1] == tensors for other in others)
    for name in names:
        assert np.abs(found[name] - before[name]).max() > 1e-4
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("codec", ["fp16", "bf16", "int8"])
def test_a_lossy_codec_carries_gradients_and_nothing_else(kit, make, wanted, codec):
    adapters = make(2, **PLAIN, comm={"codec": codec})

    def work(world):
        rank = Rank(kit, adapters[world.rank], world)
        reduced = rank.gradients(pieces(12, first=12 * world.rank), flags=(1.0,))
        rank.apply()
        return reduced.loss, reduced.flags, moved(rank), rank.tensors(), world.sums, world.seeds

    first, second = together(work)
    assert first[0] == pytest.approx(wanted[0], abs=1e-6) and first[1][0] == 2.0
    assert first[3] == second[3] and first[5] == second[5] != [], "with the same noise on all ranks"
    sums = [(f"grad.{number}", codec) for number in range(BUCKETS)]
    assert sorted(first[4]) == sums + [(f"grad.{BUCKETS}", "none")], "loss, flags and statistics go as they are"
    most = max(np.abs(gradient).max() for gradient in wanted[1].values())
    close(first[2], wanted[1], {"fp16": 2**-9, "bf16": 2**-6, "int8": 4 / 127}[codec] * most)
