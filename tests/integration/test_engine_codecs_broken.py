"""Ranks that die or stop in the middle of a large sum: the others raise at once, and the next round is a new one."""

from __future__ import annotations

import random
import signal
import time
from typing import Callable

import pytest

from engine_members import SOON, Member, broken_soon, close, form
from engine_store import Store
from engine_sums import CODECS, Hosts, apart, expected, form_hosts, sums
from tests.support.parts import hashed

pytestmark = [pytest.mark.timeout(120)]
LARGE = 8_000_000
SETTINGS = {
    "memory": ("none", [[0, 1, 2]]), "plain": ("none", apart(3)), "ring": ("none", [[0, 1], [2]]),
    "fp16": ("fp16", apart(3)), "bf16": ("bf16", apart(3)), "int8": ("int8", apart(3)),
    "both": ("int8", [[0, 1], [2, 3]])}
"""Codec and hosts: every way that a sum can take."""
named = pytest.mark.parametrize("codec, hosts", SETTINGS.values(), ids=SETTINGS)


def check_bits(members: list[Member], codec: str, hosts: Hosts) -> None:
    """Sums of several sizes are what they should be: nothing of an earlier operation is in them."""
    counts = [3, 2000, 70_000, 200_000]
    found = sums(members, codec, counts, seed=71, shared=True)
    for number, count in enumerate(counts):
        assert found[number] == hashed(expected(codec, count, 71, hosts, number=number)), f"{codec} {count}"


def begin_to_grind(members: list[Member], codec: str, count: int = LARGE, seconds: float = 0.4) -> list[int]:
    """Have them sum for a long time; by now they are in the middle of it."""
    numbers = [member.send("grind", codec=codec, count=count, times=100_000, shared=True) for member in members]
    members[0].waits(numbers[0], seconds)
    return numbers


@named
@pytest.mark.parametrize("victim", [0, -1])
def test_the_death_of_one_is_noticed_by_all_although_nobody_tells_them(
        codec: str, hosts: Hosts, victim: int, fork: Callable, store: Callable[[], Store]) -> None:
    members = fork(sum(map(len, hosts)))
    form_hosts(members, store(), hosts)
    numbers = begin_to_grind(members, codec)
    dead = members[victim]
    dead.signal(signal.SIGKILL)
    killed = time.monotonic()
    for member, number in zip(members, numbers):
        if member is not dead:
            print(f"{1000 * (broken_soon(member, number)['at'] - killed):.0f} ms")
    living = [member for member in members if member is not dead]
    close(living)
    members = [*living, *fork(1)]
    form_hosts(members, store(), hosts)
    if {len(host) for host in hosts} != {1, 2}:
        check_bits(members, codec, hosts)


@named
def test_a_round_that_is_cut_in_the_middle_of_a_sum_leaves_nothing_to_the_next_one(
        codec: str, hosts: Hosts, fork: Callable, store: Callable[[], Store]) -> None:
    """One is stopped, so that nobody notices by himself. Later it goes on, and must not disturb the others' round."""
    members = fork(sum(map(len, hosts)))
    form_hosts(members, store(), hosts)
    numbers = begin_to_grind(members, codec)
    *others, stopped = members
    stopped.signal(signal.SIGSTOP)
    others[0].waits(numbers[0], 0.3)
    for member, number in zip(others, numbers):
        cut = time.monotonic()
        member.do("cut")
        print(f"{1000 * (broken_soon(member, number)['at'] - cut):.0f} ms")
    close(others)
    others = others[::-1]
    fewer = apart(len(others)) if len(hosts) > 1 else [list(range(len(others)))]
    form_hosts(others, store(), fewer)
    check_bits(others, codec, fewer)
    again = [member.send("grind", codec=codec, count=500_000, times=30, shared=True) for member in others]
    stopped.signal(signal.SIGCONT)
    assert all(member.answer(number, 30.0).get("value", 1.0) < 1e-5 for member, number in zip(others, again))
    broken_soon(stopped, numbers[-1])
    stopped.do("close")
    check_bits(others, codec, fewer)
    close(others)
    form_hosts([stopped, *others], store(), hosts)
    if {len(host) for host in hosts} != {1, 2}:
        check_bits([stopped, *others], codec, hosts)


@named
def test_rounds_that_break_in_the_middle_of_a_sum_leave_nothing_behind(
        codec: str, hosts: Hosts, fork: Callable, store: Callable[[], Store]) -> None:
    """No thread, no file, no memory, of the survivors' own or of those that died."""
    rounds, early = 8, []
    survivors = fork(sum(map(len, hosts)) - 1)
    for count in range(rounds):
        here = store()
        victim, = fork(1)
        form_hosts([*survivors, victim], here, hosts)
        numbers = begin_to_grind([*survivors, victim], codec, 2_000_000, 0.1)
        victim.signal(signal.SIGKILL)
        for member, number in zip(survivors, numbers):
            member.do("cut")
            broken_soon(member, number)
        close(survivors)
        if count == 2:
            early = [member.do("numbers") for member in survivors]
        here.close()
    for before, after in zip(early, [member.do("numbers") for member in survivors]):
        print(f"{before['kilobytes']} -> {after['kilobytes']} kB")
        assert (after["threads"], after["files"]) == (before["threads"], before["files"])
        assert after["kilobytes"] < before["kilobytes"] + 4096


def test_who_dies_when_its_memory_is_to_be_mapped_does_not_end_the_sharing_of_the_others(
        fork: Callable, store: Callable[[], Store]) -> None:
    """They took it for a machine without shared memory, and compressed from then on what had been exact: other bits."""
    *survivors, victim = members = fork(3)
    form_hosts(members, store(), [[0, 1, 2]])
    check_bits(members, "int8", [[0, 1, 2]])
    numbers = [member.send("grind", codec="none", count=200_000, times=10, shared=True) for member in survivors]
    victim.send("vanish", count=200_000)
    for member, number in zip(survivors, numbers):
        broken_soon(member, number)
    victim.signal(signal.SIGKILL)
    close(survivors)
    members = [*survivors, *fork(1)]
    form_hosts(members, store(), [[0, 1, 2]])
    check_bits(members, "int8", [[0, 1, 2]])


def test_who_never_joins_a_sum_is_waited_for_as_long_as_the_round_allows(
        fork: Callable, store: Callable[[], Store]) -> None:
    members = fork(2)
    form(members, store(), timeout=1.0)
    for codec in ("none", "fp16"):
        answer = members[0].answer(members[0].send("grind", codec=codec, count=1000, times=1), SOON)
        assert answer.get("error") == "Unanswered" and "comm.timeout" in answer["text"], answer
        if codec == "none":
            close(members)
            form(members, store(), timeout=1.0)


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(3))
def test_any_sum_is_right_or_broken_whenever_a_rank_dies_or_stops(
        seed: int, fork: Callable, store: Callable[[], Store]) -> None:
    """300 rounds of 2 to 4 members on 1 to 4 hosts. Who gets a result gets the right one."""
    chance = random.Random(seed)
    pool = fork(4)
    for _ in range(300):
        codec, hosts = chance.choice(CODECS), chance.choice([
            apart(2), apart(3), apart(4), [[0, 1]], [[0, 1, 2]], [[0, 1], [2, 3]], [[0, 1], [2]]])
        members = chance.sample(pool, sum(map(len, hosts)))
        victim, fault = chance.choice(members), chance.choice([signal.SIGKILL, signal.SIGSTOP])
        here, count = store(), chance.choice([3, 30_000, 3_000_000])
        form_hosts(members, here, hosts)
        numbers = [member.send("grind", codec=codec, count=count, times=2, shared=chance.random() < 0.5)
                   for member in members]
        time.sleep(chance.choice([0.0, 0.01, 0.1]) * chance.random())
        victim.signal(fault)
        if chance.random() < 0.5 or fault == signal.SIGSTOP:
            for member in members:
                if member is not victim:
                    member.do("cut")
        for member, number in zip(members, numbers):
            if member is not victim:
                answer = member.answer(number, SOON)
                assert answer.get("value", 1.0) < 1e-5 or answer.get("error") == "RoundBroken", answer
                member.do("close")
        victim.signal(signal.SIGKILL)
        pool.remove(victim)
        pool += fork(1)
        here.close()
