"""What an adapter says about its model, and what follows from the seeds."""

from __future__ import annotations

import numpy as np

from hvtrain.checkpoint.blob import Blob
from tests.support.conformance import Rank, Seat, pieces
from tests.support.digits import common


def test_parameters_are_counted(kit, make):
    count = sum(array.size for array in common.weights().values())
    assert make()[0].parameter_count() == count
    assert make(norm=True)[0].parameter_count() == count + 2 * common.WIDTH, "gamma and beta, not the statistics"


def test_weights_that_are_not_finite_are_found(kit, make):
    rank = Rank(kit, make()[0])
    assert rank.adapter.finite()
    for bad in (np.nan, np.inf, -np.inf):
        groups = rank.adapter.export()
        name, blob = sorted(groups["model"].items())[0]
        array = blob.to_numpy().copy()
        array.flat[-1] = bad
        rank.adapter.restore({**groups, "model": {**groups["model"], name: Blob.from_numpy(array)}},
                             rank.adapter.scalars())
        assert not rank.adapter.finite()
        rank.adapter.restore(groups, rank.adapter.scalars())
        assert rank.adapter.finite()


def dropped(rank, step=0, seat=(0, 2)):
    """The loss of a step under dropout, at a seat of a world."""
    rank.adapter.join(Seat(*seat))
    rank.step = step
    return rank.gradients(pieces(12, 12)).loss


def test_dropout_follows_from_seed_step_and_rank(rich, kit, make):
    rank, twin = rich(2)
    losses = [dropped(rank, *at) for at in ((0, (0, 2)), (1, (0, 2)), (0, (1, 2)), (1, (1, 2)))]
    assert len(set(losses)) == 4, "every step and every rank has its own"
    assert [dropped(twin, *at) for at in ((1, (1, 2)), (0, (1, 2)))] == losses[:1:-1], "whatever came before"
    assert dropped(rank, 0, (0, 5)) == losses[0], "and however many ranks there are"


def test_other_seeds_give_other_dropout_and_other_first_weights(kit, make):
    ranks = [Rank(kit, make(dropout=0.5, given=False, run={"seed": seed})[0]) for seed in (0, 1)]
    again = Rank(kit, kit.adapter({"norm": False, "dropout": 0.5, "given": False}, run={"seed": 0}))
    assert again.tensors() == ranks[0].tensors() != ranks[1].tensors(), "all workers build the same model"
    first = dropped(ranks[0])
    assert dropped(again) == first
    ranks[1].adapter.restore(ranks[0].adapter.export(), ranks[0].adapter.scalars())
    assert dropped(ranks[1]) != first, "of the same weights"
