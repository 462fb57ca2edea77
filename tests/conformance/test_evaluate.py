"""Evaluation weighs every sample alike, computes with the averages if it is asked to, and changes nothing."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.conformance import SAMPLES, Rank, batch, pieces
from tests.support.digits import common
from tests.support.threads import together


def expected(weights):
    images, labels = (part[:SAMPLES] for part in common.training())
    logits = common.outputs(weights, images)
    return {"loss": float(common.losses(logits, labels).mean()), "accuracy": float((logits.argmax(1) == labels).mean())}


def evaluated(rank, share, ema=False):
    return dict(rank.adapter.evaluate(((batch(piece), len(piece)) for piece in share), ema))


@pytest.mark.parametrize("shares", [((24,),), ((8, 8, 8),), ((13,), (8, 3)), ((12, 11), (1,), ())])
def test_shares_of_any_size_give_the_mean_over_all_samples(kit, make, shares):
    adapters = make(len(shares))

    def work(world):
        rank = Rank(kit, adapters[world.rank], world)
        return evaluated(rank, pieces(*shares[world.rank], first=sum(map(sum, shares[:world.rank])))), rank.weights()

    (first, weights), *others = together(work, len(shares))
    assert first == pytest.approx(expected(weights), abs=1e-6)
    assert all(other == first for other, _ in others), "the same bits on all ranks"


def test_it_computes_with_the_averages_if_there_are_any_and_they_are_wanted(kit, make):
    rank, without = Rank(kit, make(train={"ema": 0.9})[0]), Rank(kit, make()[0])
    rank.train(3), without.train(3)
    before = rank.state()
    assert evaluated(rank, pieces(SAMPLES)) == pytest.approx(expected(rank.weights()), abs=1e-6)
    assert evaluated(rank, pieces(SAMPLES), ema=True) == pytest.approx(expected(rank.weights("ema")), abs=1e-6)
    assert expected(rank.weights())["loss"] != pytest.approx(expected(rank.weights("ema"))["loss"], abs=1e-3)
    assert rank.state() == before
    assert evaluated(without, pieces(SAMPLES), ema=True) == pytest.approx(expected(without.weights()), abs=1e-6)


def test_it_breaks_off_without_a_trace(kit, make):
    """The averages stand in the model's place just then."""
    rank = Rank(kit, make(train={"ema": 0.9})[0])
    rank.train(2)
    before = rank.state()

    def batches():
        yield batch(range(12)), 12
        raise KeyError("the data set's own")

    with pytest.raises(KeyError):
        rank.adapter.evaluate(batches(), True)
    assert rank.state() == before


def test_it_leaves_training_as_it_is(rich):
    """No dropout in it, statistics of BatchNorm are not moved; the next step is what it would have been."""
    rank, twin = rich(2)
    rank.train(2), twin.train(2)
    before = rank.state()
    first, second = evaluated(rank, pieces(SAMPLES)), evaluated(rank, pieces(10, 14))
    assert first == pytest.approx(second, abs=1e-6) and rank.state() == before
    assert rank.train(1) == twin.train(1) and rank.state() == twin.state()


def test_values_of_other_types_are_counted(kit, make):
    """Accuracy may be booleans, or halves; the sum is taken in double precision."""
    rank = Rank(kit, make()[0])
    found = evaluated(rank, pieces(7, 17))["accuracy"]
    assert found * SAMPLES == pytest.approx(round(found * SAMPLES), abs=1e-9)
    assert np.isfinite(found)
