"""Export, restore and sharing: the state is everything that determines the next step, under stable names."""

from __future__ import annotations

import json

import pytest

from hvtrain.checkpoint.blob import Blob
from hvtrain.errors import CheckpointDamaged
from tests.support.conformance import Rank, pieces
from tests.support.threads import together

GROUPS = {"model", "optimizer", "ema"}


def passed_on(rank):
    """A state as a checkpoint would give it back: in memory of its own, and through JSON."""
    groups = {group: {name: Blob(blob.dtype, blob.shape, bytes(blob.data)) for name, blob in blobs.items()}
              for group, blobs in rank.adapter.export().items()}
    return groups, json.loads(json.dumps(rank.adapter.scalars()))


def test_a_restored_adapter_goes_on_to_the_bit(rich):
    one, other = rich(2)
    one.train(3), other.train(1)
    other.adapter.restore(*passed_on(one))
    other.step = one.step
    assert set(one.adapter.export()) == GROUPS and other.state() == one.state()
    assert other.train(2) == one.train(2)
    assert other.state() == one.state()


def test_an_export_is_a_copy_unless_it_is_wanted_as_it_is(rich):
    rank, = rich()
    rank.train(1)
    kept = rank.adapter.export()
    before = rank.tensors()
    quick = rank.adapter.export(copy=False)
    for group, blobs in quick.items():
        assert {name: bytes(blob.data) for name, blob in blobs.items()} == {
            name: bytes(blob.data) for name, blob in kept[group].items()}
    del quick
    rank.train(1)
    assert rank.tensors() != before
    rank.adapter.restore(kept, rank.adapter.scalars())
    assert rank.tensors() == before


def test_names_are_the_same_whatever_was_built_before(rich):
    """A replacement builds its model in a process that has built others; a checkpoint of one must fit the other."""
    def outline(rank):
        return {group: {name: (blob.dtype, blob.shape) for name, blob in blobs.items()}
                for group, blobs in rank.adapter.export().items()}

    first, second = rich(2)
    first.train(1), second.train(1)
    assert outline(first) == outline(second)
    assert all(name in outline(first)["model"] for name in outline(first)["ema"])


@pytest.mark.parametrize("spoil, words", [
    (lambda group: group.pop(sorted(group)[0]), "lacks"),
    (lambda group: group.update(odd=Blob("F32", (1,), b"1234")), "odd"),
    (lambda group: group.update({sorted(group)[-1]: Blob("F32", (1, 1, 1), b"1234")}), "shape")])
def test_a_state_that_does_not_fit_is_refused(rich, spoil, words):
    rank, = rich()
    rank.train(1)
    groups, scalars = passed_on(rank)
    spoil(groups["model"])
    before = rank.tensors()
    with pytest.raises(CheckpointDamaged, match=words):
        rank.adapter.restore(groups, scalars)
    assert rank.tensors() == before


def test_averages_that_are_switched_on_later_start_from_the_weights(kit, make):
    rank, later = Rank(kit, make()[0]), Rank(kit, make(train={"ema": 0.9})[0])
    rank.train(2)
    later.adapter.restore(*passed_on(rank))
    weights, averages = later.weights(), later.weights("ema")
    assert averages and all((averages[name] == weights[name]).all() for name in averages)


@pytest.mark.parametrize("root", [0, 1])
def test_a_rank_gives_its_state_to_the_others(rich, root):
    made = rich(3)

    def work(world):
        rank = made[world.rank]
        if world.rank == root:
            rank.train(3)
        rank.adapter.join(world)
        received = rank.adapter.share_state(root)
        rank.step = 3
        after = rank.state()
        rank.train(1, pieces(8, first=8 * world.rank))
        return received, after, rank.state()

    found = together(work, 3)
    assert [received > 0 for received, *_ in found] == [rank != root for rank in range(3)]
    assert len({json.dumps(after) for _, after, _ in found}) == 1
    assert len({json.dumps(end) for *_, end in found}) == 1


def test_values_are_shared_and_summed(kit, make):
    adapters = make(2)

    def work(world):
        adapter = adapters[world.rank]
        adapter.join(world)
        value = {"step": 3, "names": ["a", None]} if world.rank == 1 else None
        return adapter.share(value, 1, "test.value"), adapter.total([1e9 + world.rank, 1e-9], "test.sum")

    for value, summed in together(work):
        assert value == {"step": 3, "names": ["a", None]}
        assert summed == [2e9 + 1, 2e-9], "in double precision"
