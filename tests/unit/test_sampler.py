"""Exactness of the sampler: every draw of an epoch is used once, whatever the world does meanwhile."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvtrain.data.sampler import GlobalSampler, Position, balanced_weights, bounds, micro, split
from hvtrain.errors import CheckpointDamaged, UsageError, UserCodeError

lengths = st.integers(1, 300)
batches = st.integers(1, 90)
seeds = st.integers(0, 2**63)
worlds = st.lists(st.integers(1, 12), min_size=1, max_size=30)
quick = settings(deadline=None, max_examples=120)


def used_by_ranks(indices: np.ndarray, size: int, micro_batch: int | None) -> list[int]:
    """What all ranks together consume of one global batch, rank by rank."""
    used: list[int] = []
    for rank in range(size):
        for piece in micro(split(indices, rank, size), micro_batch):
            assert len(piece)
            used.extend(piece.tolist())
    return used


@quick
@given(lengths, batches, seeds, worlds, st.one_of(st.none(), st.integers(1, 20)), st.booleans())
def test_every_sample_once_for_any_sequence_of_worlds(length, batch, seed, worlds, micro_batch, shuffle):
    sampler = GlobalSampler(length, batch, seed, shuffle=shuffle)
    position, used, steps = Position(), [], 0
    while position.epoch == 0:
        indices = sampler.batch(position.epoch, position.cursor)
        used += used_by_ranks(indices, worlds[steps % len(worlds)], micro_batch)
        position, steps = sampler.next(position, len(indices)), steps + 1
    assert sorted(used) == list(range(length))
    assert used == sampler.epoch_order(0).tolist()  # the order, too, is that of the undisturbed run
    assert steps == sampler.steps_per_epoch
    assert position == Position(1, 0)


@quick
@given(lengths, st.lists(batches, min_size=1, max_size=6), seeds, st.data())
def test_another_global_batch_may_take_over_anywhere(length, sizes, seed, data):
    position, used = Position(), []
    for size in sizes:
        sampler = GlobalSampler(length, size, seed)  # a new process, which knows nothing but the position
        position = Position.from_json(position.to_json())
        for _ in range(data.draw(st.integers(0, 5))):
            indices = sampler.batch(position.epoch, position.cursor)
            used += [(position.epoch, index) for index in indices.tolist()]
            position = sampler.next(position)
    expected = [(epoch, index) for epoch in range(position.epoch + 1)
                for index in sampler.epoch_order(epoch).tolist()]
    assert used == expected[:position.epoch * length + position.cursor]


@quick
@given(lengths, batches, seeds, worlds)
def test_weighted_draws_are_consumed_exactly_once_too(length, batch, seed, worlds):
    weights = np.random.default_rng(length).random(length) + 0.01
    sampler = GlobalSampler(length, batch, seed, weights=weights)
    used: list[int] = []
    for number, (position, indices) in enumerate(sampler.walk()):
        if position.epoch:
            break
        used += used_by_ranks(indices, worlds[number % len(worlds)], None)
    assert used == sampler.epoch_order(0).tolist()
    assert len(used) == length
    assert used == GlobalSampler(length, batch + 1, seed, weights=weights).epoch_order(0).tolist()


@quick
@given(st.integers(0, 500), st.integers(1, 40))
def test_split_covers_without_overlap_and_evenly(count, size):
    indices = np.arange(count)
    parts = [split(indices, rank, size) for rank in range(size)]
    assert np.concatenate(parts).tolist() == indices.tolist()
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)  # low ranks get more, so idle ranks are the last ones
    assert [stop - start for start, stop in (bounds(count, rank, size) for rank in range(size))] == sizes


@quick
@given(lengths, batches, seeds)
def test_drop_last_drops_only_the_rest(length, batch, seed):
    if batch > length:
        with pytest.raises(UsageError, match="drop_last"):
            GlobalSampler(length, batch, seed, drop_last=True)
        return
    sampler = GlobalSampler(length, batch, seed, drop_last=True)
    first = [indices for _, (position, indices) in zip(range(sampler.steps_per_epoch), sampler.walk())]
    assert [len(indices) for indices in first] == [batch] * (length // batch)
    assert np.concatenate(first).tolist() == sampler.epoch_order(0)[:len(first) * batch].tolist()


def test_drop_last_rolls_over_when_a_larger_batch_finds_too_little():
    sampler = GlobalSampler(10, 8, 0, drop_last=True)
    assert len(sampler.batch(0, 6)) == 0
    assert sampler.next(Position(0, 6), 0) == Position(1, 0)
    position, indices = next(sampler.walk(Position(0, 6)))
    assert position == Position(1, 0) and len(indices) == 8


def test_orders_differ_between_epochs_and_seeds_and_repeat_otherwise():
    order = GlobalSampler(1000, 10, 7).epoch_order(3)
    assert (order == GlobalSampler(1000, 64, 7).epoch_order(3)).all()
    assert (order != GlobalSampler(1000, 10, 7).epoch_order(4)).any()
    assert (order != GlobalSampler(1000, 10, 8).epoch_order(3)).any()
    assert order.dtype == np.int64


def test_known_order():
    """A checkpoint of another version of hvtrain or numpy goes on in the middle of this very order."""
    assert GlobalSampler(12, 4, 5).epoch_order(2).tolist() == [5, 10, 4, 9, 11, 0, 8, 2, 7, 6, 3, 1]
    weighted = GlobalSampler(12, 4, 5, weights=np.arange(12))
    assert weighted.epoch_order(2).tolist() == [9, 9, 4, 11, 8, 11, 8, 11, 7, 8, 8, 6]


def test_batches_are_the_callers_own():
    sampler = GlobalSampler(100, 10, 0)
    before = sampler.batch(0, 0).copy()
    sampler.batch(0, 0)[:] = -1
    sampler.epoch_order(0)[:] = -1
    assert (sampler.batch(0, 0) == before).all()


def test_an_earlier_epoch_can_be_asked_for_again():
    sampler = GlobalSampler(50, 7, 0)
    first = sampler.epoch_order(0)
    for epoch in (1, 2, 3):
        sampler.plan(epoch)
    assert len(sampler._plans) == 2
    assert (sampler.epoch_order(0) == first).all()


def test_weights_are_followed_and_zero_is_never_drawn():
    weights = np.array([0.0, 1.0, 3.0, 0.0, 4.0, 0.0])
    weights = np.tile(weights, 20_000)
    drawn = GlobalSampler(len(weights), 64, 1, weights=weights).epoch_order(0) % 6
    shares = np.bincount(drawn, minlength=6) / len(drawn)
    assert shares[[0, 3, 5]].tolist() == [0, 0, 0]
    np.testing.assert_allclose(shares[[1, 2, 4]], [1 / 8, 3 / 8, 4 / 8], atol=0.01)


def test_weighted_without_shuffle_is_ascending():
    order = GlobalSampler(100, 10, 1, weights=np.ones(100), shuffle=False).epoch_order(0)
    assert (np.diff(order) >= 0).all()
    assert sorted(order) == sorted(GlobalSampler(100, 10, 1, weights=np.ones(100)).epoch_order(0))


@pytest.mark.parametrize("labels", [
    np.repeat([0, 1, 2], [9000, 900, 100]),
    np.repeat([-5, 1, 10**12], [9000, 900, 100]),
    ["cat"] * 9000 + ["dog"] * 900 + ["emu"] * 100,
])
def test_balanced_weights_draw_every_class_equally(labels):
    weights = balanced_weights(labels)
    order = GlobalSampler(len(labels), 64, 0, weights=weights).epoch_order(0)
    _, counts = np.unique(np.asarray(labels)[order], return_counts=True)
    np.testing.assert_allclose(counts / len(labels), [1 / 3] * 3, atol=0.02)
    assert weights[0] == pytest.approx(1 / 9000)


@pytest.mark.parametrize("weights, message", [
    (np.ones(4), r"each of the 5 samples.*\(4,\)"),
    (np.zeros(5), "above 0"),
    (np.array([1, 2, -1, 0, 0.0]), "sample 2"),
    (np.array([1, np.nan, 1, 0, 0.0]), "sample 1"),
])
def test_unusable_weights(weights, message):
    with pytest.raises(UserCodeError, match=message):
        GlobalSampler(5, 2, 0, weights=weights)


def test_impossible_arguments():
    with pytest.raises(UserCodeError, match="no samples"):
        GlobalSampler(0, 2, 0)
    with pytest.raises(UsageError, match="global_batch.*got 0"):
        GlobalSampler(5, 0, 0)
    with pytest.raises(UsageError, match="seed"):
        GlobalSampler(5, 2, -1)
    with pytest.raises(UsageError, match="5 samples.*got 6.*changed"):
        GlobalSampler(5, 2, 0).batch(0, 6)
    with pytest.raises(UsageError, match="2 samples left"):
        GlobalSampler(5, 2, 0).next(Position(0, 3), 3)
    with pytest.raises(UsageError, match="rank"):
        split(np.arange(5), 2, 2)
    with pytest.raises(UsageError, match="micro_batch"):
        micro(np.arange(5), 0)
    with pytest.raises(UserCodeError, match="one dimension"):
        balanced_weights(np.ones((3, 2)))


def test_position_json():
    assert Position.from_json(Position(3, 17).to_json()) == Position(3, 17)
    assert Position(1, 900) < Position(2, 0)
    for broken in (None, {}, {"epoch": 1}, {"epoch": 1, "cursor": -1}, {"epoch": "1", "cursor": 2},
                   {"epoch": True, "cursor": 0}):
        with pytest.raises(CheckpointDamaged, match="epoch"):
            Position.from_json(broken)
    with pytest.raises(UsageError):
        Position(-1, 0)


def test_steps_left_agrees_with_walking():
    for drop_last in (False, True):
        sampler = GlobalSampler(23, 5, 0, drop_last=drop_last)
        for cursor in range(0, 24):
            steps, position = 0, Position(0, cursor)
            while sampler.plan(0).count(position.cursor) and position.epoch == 0:
                position, steps = sampler.next(position), steps + 1
            assert sampler.plan(0).steps_left(cursor) == steps
        assert sampler.plan(0).steps_left() == sampler.steps_per_epoch


def test_a_step_costs_microseconds():
    sampler = GlobalSampler(2_000_000, 256, 0)
    sampler.plan(0)
    begin, rounds = time.perf_counter(), 2000
    position = Position()
    for _ in range(rounds):
        split(sampler.batch(position.epoch, position.cursor), 1, 4)
        position = sampler.next(position)
    assert (time.perf_counter() - begin) / rounds < 200e-6  # some 6 us on a quiet machine
