"""Seats agree with what Horovod's own launcher would give the same hosts and slots."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from hvtrain.control.seats import assign as seats
from hvtrain.control.events import FormRound


def place(*hosts):
    action = FormRound(3, tuple((f"w{n}", host) for n, host in enumerate(hosts)))
    return seats(action, rendezvous=("10.0.0.1", 99), interface="eth0")


def figures(found):
    return [(s.rank, s.local_rank, s.local_size, s.cross_rank, s.cross_size) for s in found]


def test_unequal_slots():
    assert figures(place("a", "a", "a", "b", "c", "c")) == [
        (0, 0, 3, 0, 3), (1, 1, 3, 0, 2), (2, 2, 3, 0, 1),
        (3, 0, 1, 1, 3),
        (4, 0, 2, 2, 3), (5, 1, 2, 1, 2)]


def test_one_worker():
    assert figures(place("a")) == [(0, 0, 1, 0, 1)]


def test_what_every_seat_says():
    for seat in place("a", "b"):
        assert (seat.round, seat.size, seat.rendezvous_host, seat.rendezvous_port, seat.interface) == (
            3, 2, "10.0.0.1", 99, "eth0")
    assert [seat.host for seat in place("a", "b")] == ["a", "b"]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_agreement_with_horovod(slots):
    hosts = pytest.importorskip("horovod.runner.common.util.hosts")
    infos = [hosts.HostInfo(f"host{n}", count) for n, count in enumerate(slots)]
    theirs = hosts.get_host_assignments(infos, sum(slots))
    ours = place(*(info.hostname for info in infos for _ in range(info.slots)))
    assert [(s.hostname, s.rank, s.local_rank, s.local_size, s.cross_rank, s.cross_size, s.size) for s in theirs] == [
        (s.host, s.rank, s.local_rank, s.local_size, s.cross_rank, s.cross_size, s.size) for s in ours]


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=12))
def test_any_order_of_hosts_gives_consistent_communicators(hosts):
    found = place(*hosts)
    assert [s.rank for s in found] == list(range(len(hosts)))
    for host in set(hosts):
        assert sorted(s.local_rank for s in found if s.host == host) == list(range(hosts.count(host)))
    for local in {s.local_rank for s in found}:
        members = [s for s in found if s.local_rank == local]
        assert sorted(s.cross_rank for s in members) == list(range(len(members)))
        assert {s.cross_size for s in members} == {len(members)}
