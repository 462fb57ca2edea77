"""Ranks that die or stop in the middle of a large sum: the others raise at once, and the next round knows nothing of it."""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack, closing
from typing import Callable, Iterator

import pytest

from engine_members import SOON, Member, broken_soon, close, form, warm
from engine_store import Store
from engine_sums import Hosts, apart, expected, form_hosts, sums
from tests.support.parts import hashed

pytestmark = [pytest.mark.timeout(120)]
LARGE = 8_000_000
SETTINGS = {
    "memory": ("none", [[0, 1, 2]]), "plain": ("none", apart(3)), "ring": ("none", [[0, 1], [2]]),
    "fp16": ("fp16", apart(3)), "bf16": ("bf16", apart(3)), "int8": ("int8", apart(3)), "both": ("int8", [[0, 1], [2, 3]])}
"""Codec and hosts: every way that a sum can take."""
named = pytest.mark.parametrize("codec, hosts", SETTINGS.values(), ids=SETTINGS)


@pytest.fixture
def fork() -> Iterator[Callable[[int], list[Member]]]:
    """Starts members, and ends all of them after the test."""
    members = warm("torch")
    yield members.fork
    members.end()


@pytest.fixture
def store() -> Iterator[Callable[[], Store]]:
    with ExitStack() as stack:
        yield lambda: stack.enter_context(closing(Store()))


def check_bits(members: list[Member], codec: str, hosts: Hosts) -> None:
    """Sums of several sizes are what they should be: nothing of an earlier operation is in them."""
    counts = [3, 2000, 70_000]
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
    """One is stopped, so that nobody notices by himself; later it goes on, and must not disturb the others' new round."""
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
