"""Flat buckets of NumPy gradients: where they lie, when they are reduced, and what rides along."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from hvtrain.comm.codecs import EngineCodec
from hvtrain.comm.flat import FLAGS, LINE, FlatBuckets, plan
from hvtrain.engine.world import SoloWorld
from hvtrain.errors import RoundBroken
from tests.support.threads import together

SHAPES = [(5, 3), (3,), (), (40, 10), (10,)]


class Watched(SoloWorld):
    """Notes which sums were started, and waited for, in which order; adds ``other`` to each."""

    def __init__(self, other=0.0):
        self.started, self.waited, self.other = [], [], other

    def sum_async(self, tensor, name, codec="none"):
        self.started.append((name, codec))
        tensor += self.other
        return name

    def wait(self, handle):
        self.waited.append(handle)


def make(shapes=SHAPES, dtypes=None, limits=(256, 64), statistics=0, codec="none", world=None, **more):
    dtypes = dtypes or ["float32"] * len(shapes)
    found = FlatBuckets(shapes, plan(shapes, dtypes, *limits), statistics, codec=EngineCodec(codec), **more)
    found.use(world or Watched())
    return found


def gradients(seed=0, shapes=SHAPES):
    random = np.random.default_rng(seed)
    return [random.standard_normal(shape).astype(np.float32) for shape in shapes]


def put_all(buckets, found, order=None):
    for index in order if order is not None else reversed(range(len(found))):
        buckets.put(index, found[index])


def step(buckets, *passes, loss=1.0, flags=(0.0,)):
    buckets.begin()
    for number, found in enumerate(passes):
        buckets.pass_begins(number == 0, number == len(passes) - 1)
        put_all(buckets, found)
    return buckets.finish(loss, flags, bool(passes))


def test_every_gradient_begins_at_a_whole_line_and_no_two_overlap():
    for limits in ((1, 1), (256, 64), (1 << 20, 1 << 20)):
        buckets = make(limits=limits)
        step(buckets, gradients())
        owned = []
        for view, shape in zip(buckets.views, SHAPES):
            assert view.shape == shape and view.dtype == np.float32
            start = view.__array_interface__["data"][0]
            assert (start - buckets._flats[0].__array_interface__["data"][0]) % (4 * LINE) == 0
            owned.append((start, start + view.nbytes))
        assert all(one[1] <= other[0] for one, other in zip(sorted(owned), sorted(owned)[1:]))


def test_the_norm_does_not_depend_on_the_buckets():
    """They end where stages do, and the number of stages is to change no bit."""
    norms = {}
    for limits in ((1, 1), (256, 64), (1 << 20, 1 << 20)):
        for seed in range(20):
            buckets = make(limits=limits)
            step(buckets, gradients(seed))
            norms.setdefault(seed, set()).add(buckets.norm())
    assert all(len(found) == 1 for found in norms.values()), "one number for each seed, to the bit"
    assert norms[0].pop() == pytest.approx(np.sqrt(sum(np.square(each).sum() for each in gradients(0))), rel=1e-6)


def test_one_piece_of_memory_holds_all_buckets_and_may_come_from_outside():
    asked = []

    def zeros(elements):
        asked.append(np.zeros(elements, np.float32))
        return asked[-1]

    buckets = make(zeros=zeros, statistics=3)
    step(buckets, gradients())
    pool, = asked
    assert all(np.shares_memory(view, pool) for view in (*buckets.views, buckets.statistics))
    sizes = {view.size for view in buckets.views}
    assert pool.size >= sum(sizes) and len(buckets._flats) > 1


@pytest.mark.parametrize("limits", [(1, 1), (256, 64), (1 << 20, 1 << 20)])
@pytest.mark.parametrize("order", [(4, 3, 2, 1, 0), (0, 1, 2, 3, 4), (2, 4, 0, 3, 1)])
def test_gradients_arrive_in_any_order(limits, order):
    buckets, found = make(limits=limits), gradients()
    for _ in range(2):  # the memory is used again
        buckets.begin()
        buckets.pass_begins(True, True)
        put_all(buckets, found, order)
        buckets.finish(0.0, (0.0,), True)
        for view, gradient in zip(buckets.views, found):
            np.testing.assert_array_equal(view, gradient)


def test_micro_batches_add_up():
    buckets, passes = make(), [gradients(seed) for seed in range(3)]
    for _ in range(2):
        step(buckets, *passes)
        for index, view in enumerate(buckets.views):
            np.testing.assert_array_equal(view, (passes[0][index] + passes[1][index]) + passes[2][index])


def test_a_parameter_without_gradient_has_zero_and_adds_nothing():
    buckets = make()
    step(buckets, gradients())
    some = [*gradients(1)[:3], None, None]
    step(buckets, some, gradients(2))
    np.testing.assert_array_equal(buckets.views[3], gradients(2)[3])
    step(buckets, gradients(2), some)
    np.testing.assert_array_equal(buckets.views[3], gradients(2)[3])
    step(buckets, some)
    assert not buckets.views[3].any() and not buckets.views[4].any(), "not what the step before had left there"


def test_a_bucket_is_reduced_when_it_is_full_and_not_before_the_last_pass():
    world = Watched()
    buckets, found = make(limits=(1, 1), world=world), gradients()
    buckets.begin()
    buckets.pass_begins(True, False)
    put_all(buckets, found)
    assert world.started == []
    buckets.pass_begins(False, True)
    for number, index in enumerate((4, 3, 2, 1)):
        assert len(world.started) == number
        buckets.put(index, found[index])
    assert world.started == [(f"grad.{number}", "none") for number in range(4)]
    buckets.put(0, found[0])
    assert len(world.started) == 4, "the last has the tail, which is not written yet"
    assert world.waited == []
    buckets.finish(0.0, (0.0,), True)
    assert [name for name, _ in world.started] == world.waited == [f"grad.{number}" for number in range(5)]


def test_a_rank_without_samples_starts_the_same_sums_and_adds_nothing():
    one, other = Watched(), Watched()
    busy, idle = make(world=one, statistics=2), make(world=other, statistics=2)
    for buckets in (busy, idle):
        step(buckets, gradients())
    one.started.clear(), other.started.clear()
    step(busy, gradients())
    step(idle)
    assert sorted(one.started) == sorted(other.started)
    assert not any(view.any() for view in idle.views) and not idle.statistics.any()


def test_loss_flags_and_statistics_ride_along():
    def work(world):
        buckets = make(world=world, statistics=3)
        found = []
        for factor in (1.0, 2.0):
            buckets.begin()
            buckets.pass_begins(True, True)
            put_all(buckets, gradients(world.rank))
            buckets.statistics[:] = [1.0, 2.0, factor * world.rank]
            loss, flags, waited, hidden = buckets.finish(0.5 + world.rank, (1.0, float(world.rank)), True)
            found.append((loss, flags, buckets.statistics.tolist()))
            assert waited >= 0 and hidden == 0 and len(flags) == FLAGS
        return found, [view.copy() for view in buckets.views], len(world.sums)

    (found, views, sums), (others, other_views, _) = together(work)
    assert found == others == [(2.0, (2.0, 1.0, 0.0, 0.0), [2.0, 4.0, last]) for last in (1.0, 2.0)]
    for index, view in enumerate(views):
        np.testing.assert_array_equal(view, gradients(0)[index] + gradients(1)[index])
        np.testing.assert_array_equal(view, other_views[index])
    assert sums == 2 * len(make()._plan), "no sum beside those of the gradients"


@pytest.mark.parametrize("codec", ["fp16", "bf16", "int8"])
def test_with_a_lossy_codec_the_tail_goes_by_itself(codec):
    world = Watched()
    buckets = make(codec=codec, world=world, statistics=1)
    step(buckets, gradients())
    *most, last = world.started
    assert last == (f"grad.{len(most)}", "none") and {way for _, way in most} == {codec}
    assert not any(np.shares_memory(buckets.statistics, view) for view in buckets.views)


@pytest.mark.parametrize("dtypes", [["float16"] * 5, ["float32"] * 3 + ["float64"] * 2, ["float64"] + ["float32"] * 4])
def test_other_types_have_buckets_of_their_own_and_keep_their_precision(dtypes):
    world = Watched()
    buckets, found = make(dtypes=dtypes, world=world, codec="none"), gradients()
    loss, flags, *_ = step(buckets, found, loss=16777.25, flags=(3.0,))
    assert (loss, flags[0]) == (16777.25, 3.0)
    for view, gradient, dtype in zip(buckets.views, found, dtypes):
        assert view.dtype == dtype
        np.testing.assert_array_equal(view, gradient.astype(dtype))
    assert all(way == "none" for _, way in world.started)


def test_norm_scale_and_finite_leave_the_tail_alone():
    buckets, found = make(statistics=2), gradients()
    buckets.begin()
    buckets.pass_begins(True, True)
    put_all(buckets, found)
    buckets.statistics[:] = np.nan
    buckets.finish(np.nan, (np.inf,), True)
    norm = np.sqrt(sum(float(np.square(gradient.astype(np.float64)).sum()) for gradient in found))
    assert buckets.finite() and buckets.norm() == pytest.approx(norm, rel=1e-6)
    buckets.scale(0.5)
    assert buckets.norm() == pytest.approx(norm / 2, rel=1e-6) and np.isnan(buckets.statistics).all()
    for view, gradient in zip(buckets.views, found):
        np.testing.assert_array_equal(view, gradient * np.float32(0.5))


@pytest.mark.parametrize("spoil", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", range(len(SHAPES)))
def test_a_gradient_that_is_not_finite_is_found_wherever_it_is(place, spoil):
    buckets, found = make(), gradients()
    found[place] = np.array(found[place])
    found[place].flat[-1] = spoil
    step(buckets, found)
    assert not buckets.finite() and not np.isfinite(buckets.norm())
    step(buckets, gradients())
    assert buckets.finite()


def test_gradients_of_many_threads():
    """TensorFlow calls from threads of its own: each bucket is started once, with all of its gradients."""
    shapes = [(7,)] * 200
    found = gradients(shapes=shapes)
    world = Watched()
    buckets = make(shapes, limits=(320, 64), world=world)
    for _ in range(5):
        world.started.clear()
        buckets.begin()
        buckets.pass_begins(True, True)
        threads = [threading.Thread(target=put_all, args=(buckets, found, range(first, 200, 8))) for first in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        buckets.finish(0.0, (0.0,), True)
        assert len(world.started) == len(set(world.started)) == len(buckets._plan) > 20
        for view, gradient in zip(buckets.views, found):
            np.testing.assert_array_equal(view, gradient)


@pytest.mark.parametrize("breaks_at", [1, 2])
def test_after_a_broken_round_the_next_step_is_right(breaks_at):
    class Breaking(SoloWorld):
        left = breaks_at

        def sum_async(self, tensor, name, codec="none"):
            tensor += 1
            self.left -= 1
            if self.left == 0:
                raise RoundBroken("gone")

    buckets = make(world=Breaking())
    with pytest.raises(RoundBroken):
        step(buckets, gradients())
    buckets.use(SoloWorld())
    loss, flags, *_ = step(buckets, gradients(1), loss=2.0, flags=(1.0,))
    assert (loss, flags) == (2.0, (1.0, 0.0, 0.0, 0.0))
    for view, gradient in zip(buckets.views, gradients(1)):
        np.testing.assert_array_equal(view, gradient)


def test_no_bucket_holds_gradients_of_two_stages():
    shapes, stages = [(20,), (4, 4), (16,), (20,), (3,)], [0, 1, 0, 1, 1]
    together = plan(shapes, ["float32"] * 5, 1 << 20, 1 << 20)
    apart = plan(shapes, ["float32"] * 5, 1 << 20, 1 << 20, stages)
    assert [[slot.index for slot in bucket.slots] for bucket in together] == [[4, 3, 2, 1, 0]]
    assert [[slot.index for slot in bucket.slots] for bucket in apart] == [[4, 3, 1], [2, 0]]
    assert {bucket.kind for bucket in apart} == {"float32"}
