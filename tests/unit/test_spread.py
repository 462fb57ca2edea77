"""Which order sums are taken in, as workers move from host to host."""

from __future__ import annotations

import pytest

from hvtrain.control.spread import Spread, is_tree


@pytest.mark.parametrize("hosts, tree", [
    ("a", True), ("aaa", True), ("ab", True), ("abc", True), ("aabb", True), ("aabbcc", True), ("aaaabbbb", True),
    ("aab", False), ("abb", False), ("abab", False), ("aaabbb", False), ("aba", False), ("aabbc", False)])
def test_sums_within_hosts_are_subtrees(hosts: str, tree: bool) -> None:
    assert is_tree(hosts) == tree


def test_a_job_that_began_in_the_order_of_the_tree_keeps_it() -> None:
    """A host of two was lost, its workers replaced on two others: from then on sums were rounded differently."""
    spread = Spread()
    assert [spread.apart(hosts) for hosts in ("aabb", "aacd", "aaac", "aacc", "aaaa")] == [False, True, True, False, False]


def test_a_job_that_began_otherwise_has_no_such_order_to_keep() -> None:
    spread = Spread()
    assert not any(spread.apart(hosts) for hosts in ("aab", "abc", "abb", "aaa"))


def test_each_number_of_workers_has_an_order_of_its_own() -> None:
    """One host is always a tree; a job that grows from there to four and two has no calm run to agree with to the bit."""
    spread = Spread()
    assert not any(spread.apart(hosts) for hosts in ("a", "aab", "aabb", "aaaabb"))
    assert spread.apart("aabc")
