"""A step happens or it does not: what breaks before ``apply`` leaves every bit as it was."""

from __future__ import annotations

import pytest

from hvtrain.engine.world import SoloWorld
from hvtrain.errors import RoundBroken
from tests.support.conformance import BUCKETS, SAMPLES, Breaking, Rank, pieces
from tests.support.threads import together


@pytest.mark.parametrize("where, number", [("start", 1), ("start", 2), ("start", BUCKETS), ("wait", 1),
                                           ("wait", BUCKETS)])
def test_a_broken_round_changes_nothing_and_the_step_can_be_taken_again(rich, where, number):
    """Weights, the optimizer's moments, statistics of BatchNorm, averages; and the same dropout when done again."""
    rank, twin = rich(2)
    rank.train(2), twin.train(2)
    before = rank.state()
    rank.adapter.join(Breaking(where, number))
    with pytest.raises(RoundBroken):
        rank.gradients(pieces(10, SAMPLES - 10))
    assert rank.state() == before == twin.state()
    rank.adapter.join(SoloWorld())
    assert rank.train(2) == twin.train(2)
    assert rank.state() == twin.state()


def test_gradients_alone_change_nothing_that_is_kept(rich):
    """Whoever lost a peer after the reduction, and before apply, stands where it stood."""
    rank, = rich()
    rank.train(1)
    before = {name: digest for name, digest in rank.state().items() if "norm" not in name}
    rank.gradients()
    assert {name: digest for name, digest in rank.state().items() if "norm" not in name} == before


def test_a_round_that_breaks_on_all_ranks_is_put_back_on_all(kit, make):
    adapters = make(2, norm=True)

    def work(world):
        rank = Rank(kit, adapters[world.rank], world)
        share = [pieces(16), pieces(8, first=16)][world.rank]
        rank.train(1, share)
        before = rank.state()
        world.breaks_at = len(world.sums) + 2
        with pytest.raises(RoundBroken):
            rank.gradients(share)
        after = rank.state()
        world.breaks_at = None
        rank.train(1, share)
        return before, after, rank.state()

    first, second = together(work)
    assert first == second and first[0] == first[1] != first[2]


def test_a_mistake_in_the_users_code_is_raised_as_it_is(kit, make):
    """It comes out of the framework's machinery, whatever that wraps it into."""
    class Mistake(Exception):
        pass

    class Raising(SoloWorld):
        def sum_async(self, tensor, name, codec="none"):
            raise Mistake("42")

    rank = Rank(kit, make()[0], Raising())
    with pytest.raises(Mistake, match="42"):
        rank.gradients()


def test_a_rank_reports_every_micro_batch(kit, make):
    """That is how a watch tells slow from stuck."""
    rank = Rank(kit, make()[0])
    before = len(kit.ticks)
    rank.gradients(pieces(8, 8, 8))
    assert len(kit.ticks) == before + 3
