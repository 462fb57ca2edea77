"""Any parameters are packed completely, without overlap, within the limits, and the same on every rank."""

from __future__ import annotations

from hypothesis import given, strategies as st

from hvtrain.comm.buckets import Item, plan

ITEMS = st.lists(st.tuples(st.integers(0, 200), st.sampled_from([("f32", 4), ("bf16", 2), ("f64", 8)])), max_size=30).map(
    lambda found: [Item(i, elements, size, kind) for i, (elements, (kind, size)) in enumerate(found)])
LIMIT = st.integers(1, 2000)


@given(ITEMS, LIMIT, LIMIT)
def test_every_gradient_lies_in_one_bucket_of_its_kind_without_gap_or_overlap(items, limit, first):
    buckets = plan(items, limit, first)
    by_index = {item.index: item for item in items}
    slots = [slot for bucket in buckets for slot in bucket.slots]
    assert sorted(slot.index for slot in slots) == [item.index for item in items]
    for bucket in buckets:
        end = 0
        for slot in bucket.slots:
            assert slot.offset == end and slot.elements == by_index[slot.index].elements
            assert bucket.kind == by_index[slot.index].kind
            end += slot.elements
        assert bucket.elements == end and bucket.slots


@given(ITEMS, LIMIT, LIMIT)
def test_limits_hold_except_for_a_gradient_that_is_larger_by_itself(items, limit, first):
    bytes_each = {item.index: item.bytes_each for item in items}
    for number, bucket in enumerate(plan(items, limit, first)):
        sizes = [slot.elements * bytes_each[slot.index] for slot in bucket.slots]
        largest = max(sizes)
        assert sum(sizes) <= limit or sum(sizes) == largest
        if number == 0:
            assert sum(sizes) <= max(limit, largest)


@given(ITEMS, LIMIT, LIMIT)
def test_backward_order_within_a_kind(items, limit, first):
    """Later parameters come first, so that buckets fill in the order in which backward makes gradients."""
    for kind in {item.kind for item in items}:
        order = [slot.index for bucket in plan(items, limit, first) if bucket.kind == kind for slot in bucket.slots]
        assert order == sorted(order, reverse=True)


@given(ITEMS, LIMIT, LIMIT)
def test_every_rank_plans_the_same(items, limit, first):
    assert plan(items, limit, first) == plan(list(items), limit, first)


def floats(*sizes):
    return [Item(i, size, 4, "f32") for i, size in enumerate(sizes)]


def shape(buckets):
    return [[slot.index for slot in bucket.slots] for bucket in buckets]


def test_the_first_bucket_is_small():
    assert shape(plan(floats(10, 10, 10, 10, 10), 120, 40)) == [[4], [3, 2, 1], [0]]


def test_the_first_limit_is_never_above_the_other():
    assert shape(plan(floats(10, 10, 10), 40, 4000)) == [[2], [1], [0]]


def test_a_large_gradient_has_a_bucket_of_its_own():
    assert shape(plan(floats(1, 100, 1, 1), 40, 40)) == [[3, 2], [1], [0]]


def test_kinds_are_packed_apart():
    items = [Item(0, 1, 4, "f32"), Item(1, 1, 2, "bf16"), Item(2, 1, 4, "f32")]
    assert shape(plan(items, 100, 100)) == [[2, 0], [1]]


def test_nothing_to_pack():
    assert plan([], 100, 100) == ()
