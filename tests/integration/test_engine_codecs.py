"""Sums with every codec between real Horovod processes: the same bits on all ranks, those of the reference."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Callable

import numpy as np
import pytest

from engine_members import SOON, check_sum, close, form, start
from engine_store import Store
from engine_sums import (
    CODECS, LOSSY, Hosts, allowed, apart, expected, form_hosts, on_all, parts, shares_memory, sums)
from tests.support import wire
from tests.support.parts import SPOILED, hashed, part, spoiled_at

pytestmark = [pytest.mark.timeout(120)]
SIZES = [1, 7, 1000, 1025, 100_000, 1_000_003]
WORLDS = [2, 3, 4]


@pytest.mark.parametrize("size", WORLDS)
def test_every_size_has_the_bits_of_the_reference(size: int, fork: Callable, store: Callable[[], Store]) -> None:
    members = fork(size)
    form(members, store(), shared_memory=False)
    for kind in ("normal", "gradient"):
        for codec in CODECS:
            found = sums(members, codec, SIZES, seed=11, kind=kind)
            for number, count in enumerate(SIZES):
                reference = expected(codec, count, 11, apart(size), kind, number)
                assert found[number] == hashed(reference), f"{kind} {codec} {count}"
                mine = parts(kind, count, 11 + number, size)
                exact = sum(each.astype(np.float64) for each in mine)
                wrong = np.flatnonzero(~(np.abs(reference - exact) <= allowed(codec, mine)))
                assert not len(wrong), f"{kind} {codec} {count}: {reference[wrong[0]]} instead of {exact[wrong[0]]}"


@pytest.mark.parametrize("hosts", [
    [[0, 1]], [[0, 1, 2]], [[0, 1, 2, 3]], apart(3), [[0, 1], [2, 3]], [[0, 2], [1, 3]], [[0, 3], [1, 2]]], ids=str)
def test_hosts_add_up_through_memory_and_exchange_what_they_have(
        hosts: Hosts, fork: Callable, store: Callable[[], Store]) -> None:
    """Buffers that lie in memory which the others can read, and any others, which are copied there first."""
    size = sum(map(len, hosts))
    members = fork(size)
    form_hosts(members, store(), hosts)
    if not hasattr(os, "memfd_create") or not os.path.exists("/proc/self/fd"):
        pytest.skip("this machine has no memfd_create, or no /proc")
    assert shares_memory(members)
    for codec in CODECS:
        for shared in (True, False, True):
            found = sums(members, codec, SIZES, seed=12, shared=shared)
            for number, count in enumerate(SIZES):
                reference = expected(codec, count, 12, hosts, number=number)
                assert found[number] == hashed(reference), f"{codec} {shared} {count}"
    if len(hosts) == 1:  # nothing is lost where nothing is sent
        assert found == sums(members, "none", SIZES, seed=12)


@pytest.mark.parametrize("hosts", [[[0, 1, 2], [3]], [[0], [1, 2]]], ids=str)
def test_hosts_of_different_sizes(hosts: Hosts, fork: Callable, store: Callable[[], Store], tmp_path: Path) -> None:
    """Everybody exchanges with everybody, and without a codec the ring does it."""
    size = sum(map(len, hosts))
    members = fork(size)
    form_hosts(members, store(), hosts)
    for codec in LOSSY:
        found = sums(members, codec, SIZES[:-1], seed=13, shared=True)
        for number, count in enumerate(SIZES[:-1]):
            assert found[number] == hashed(expected(codec, count, 13, apart(size), number=number)), f"{codec} {count}"
    sums(members, "none", SIZES, seed=13, shared=True, save=str(tmp_path / "sums.npz"))
    for number, found in enumerate(np.load(tmp_path / "sums.npz").values()):
        mine = parts("normal", SIZES[number], 13 + number, size)
        exact = sum(each.astype(np.float64) for each in mine)
        assert (np.abs(found - exact) <= allowed("none", mine)).all(), SIZES[number]


BUCKETS = [1 + 977 * number % 12_000 for number in range(38)] + [150_000, 5]


@pytest.mark.parametrize("hosts, codecs", [
    (apart(3), CODECS), ([[0, 1], [2, 3]], ("none", "int8")), ([[0, 1, 2]], ("none",)),
    *(pytest.param(hosts, CODECS, marks=pytest.mark.soak) for hosts in (apart(2), apart(4), [[0, 1], [2]]))], ids=str)
def test_forty_in_flight_have_the_same_bits_every_time(
        hosts: Hosts, codecs: tuple[str, ...], fork: Callable, store: Callable[[], Store]) -> None:
    members = fork(sum(map(len, hosts)))
    form_hosts(members, store(), hosts)
    irregular = {len(host) for host in hosts} == {1, 2}
    for codec in codecs:
        found = sums(members, codec, BUCKETS, seed=21, shared=True, times=15)
        for number in () if irregular else (0, 7, 38, 39):
            assert found[number] == hashed(expected(codec, BUCKETS[number], 21, hosts, number=number))


def test_noise_is_another_with_another_seed_and_only_with_int8(fork: Callable, store: Callable[[], Store]) -> None:
    members = fork(2)
    form(members, store(), shared_memory=False)
    for codec in CODECS:
        first, again, other = (
            on_all(members, "sums", codec=codec, counts=[3000], seed=7, noise=noise)[0] for noise in (1, 1, 2**40 + 1))
        assert first == again and (other != first) == (codec == "int8")


@pytest.mark.parametrize("hosts", [apart(2), apart(3), [[0, 1], [2, 3]], [[0, 1, 2]]], ids=str)
def test_what_is_not_finite_on_one_rank_is_seen_on_all(
        hosts: Hosts, fork: Callable, store: Callable[[], Store], tmp_path: Path) -> None:
    members, counts = fork(sum(map(len, hosts))), [5, 1024, 5000]
    form_hosts(members, store(), hosts)
    for codec in CODECS:
        for kind, value in SPOILED.items():
            sums(members, codec, counts, seed=31, kind=kind, save=str(tmp_path / "sums.npz"))
            for number, found in enumerate(np.load(tmp_path / "sums.npz").values()):
                count, place = counts[number], spoiled_at(counts[number])
                assert np.array_equal(found, expected(codec, count, 31, hosts, kind, number), equal_nan=True)
                if codec != "int8" or len(hosts) == 1:
                    assert np.array_equal(found[place], np.float32(value), equal_nan=True)
                    assert np.isfinite(np.delete(found, place)).all(), f"{codec} {kind}: it spoils others"
                elif hosts == apart(len(hosts)):
                    block = place // wire.BLOCK * wire.BLOCK
                    struck = np.zeros(count, bool)
                    struck[block:block + wire.BLOCK] = True
                    assert np.isnan(found[struck]).all() and np.isfinite(found[~struck]).all()
                else:
                    assert np.isnan(found[place])
    check_sum(members)


@pytest.mark.parametrize("kind", ["large", "signs"])
def test_sums_beyond_a_halfs_range_and_sums_that_cancel(
        kind: str, fork: Callable, store: Callable[[], Store], tmp_path: Path) -> None:
    members = fork(4)
    form(members, store(), shared_memory=False)
    for codec in LOSSY:
        sums(members, codec, [10_000], seed=41, kind=kind, save=str(tmp_path / "sums.npz"))
        found, = np.load(tmp_path / "sums.npz").values()
        mine = parts(kind, 10_000, 41, 4)
        exact = sum(each.astype(np.float64) for each in mine)
        assert np.isfinite(found).all() and (np.abs(found - exact) <= allowed(codec, mine)).all()
        if kind == "large":
            assert (exact > 65_504).mean() > 0.99 and exact.max() > 2e5
            limit = {"fp16": 2.0**-10, "bf16": 2.0**-7, "int8": 2 * 4 / 127}[codec]
            assert np.abs(found - exact).max() < limit * exact.max()


@pytest.mark.parametrize("shared_memory", [True, False])
def test_nothing_at_all_can_be_summed(shared_memory: bool, fork: Callable, store: Callable[[], Store]) -> None:
    members = fork(2)
    for member, number in zip(members, start(members, store(), shared_memory=shared_memory)):
        assert member.answer(number).get("value") == 2
    for codec in CODECS:
        assert sums(members, codec, [0], seed=1) == [hashed(np.zeros(0, np.float32))]
    check_sum(members)


@pytest.mark.parametrize("hosts", [apart(2), apart(3), [[0, 1], [2, 3]], [[0, 1, 2]]], ids=str)
def test_plain_coded_and_broadcast_operations_go_together(
        hosts: Hosts, fork: Callable, store: Callable[[], Store]) -> None:
    size = sum(map(len, hosts))
    members = fork(size)
    form_hosts(members, store(), hosts)
    for _ in range(5):
        first, *others = on_all(members, "medley", seed=61)
        assert all(other == first for other in others)
    for number, codec in enumerate(("none", "fp16", "int8", "bf16") * 2):
        mine = parts("normal", 3000 + number, 61 + number, size)
        reference = wire.total(mine, codec, 61, f"allreduce.hvtrain_coded_{codec}.m{number}", hosts)
        assert first[number] == hashed(reference), f"{number} {codec}"
    factor = size * (size + 1) // 2
    assert first[8:] == [hashed(np.arange(1000.0) * factor), hashed(np.arange(1000) * factor),
                         hashed(part("normal", 5000, 61, size - 1))]


@pytest.mark.parametrize("shared_memory", [True, False])
def test_the_engine_tells_what_it_did(shared_memory: bool, fork: Callable, store: Callable[[], Store]) -> None:
    members = fork(2)
    form(members, store(), shared_memory=shared_memory)
    for codec in CODECS:
        for spans in on_all(members, "spans", codec=codec, count=200_000):
            large, small = sorted(spans, key=lambda span: -span["bytes"])
            assert (large["bytes"], small["bytes"]) == (800_000, 40)
            assert large["name"].endswith(f"hvtrain_coded_{codec}.s0") and small["name"].endswith(".s1")
            assert 0 <= large["codec"] <= large["end"] - large["begin"] < 5
            assert (large["codec"] > 0) == (not shared_memory)


def test_a_codec_that_is_unknown_breaks_the_round_and_nothing_else(fork: Callable, store: Callable[[], Store]) -> None:
    members = fork(2)
    form(members, store())
    numbers = [member.send("wrong_name") for member in members]
    for member, number in zip(members, numbers):
        answer = member.answer(number, SOON)
        assert "hvtrain_coded_zip" in answer["text"], answer
    close(members)
    form(members, store())
