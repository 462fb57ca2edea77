"""Forming a round with real processes: it can be called off whatever it waits for, and leaves nothing behind."""

from __future__ import annotations

import random
import signal
import socket
import struct
import time
from contextlib import ExitStack
from typing import Callable

import pytest

from engine_members import (
    HIGHEST, SOON, Member, addresses, begin, broken_soon, call_off, check_sum, close, crowded, form, formed, lower_listener,
    place, published, start)
from engine_store import Store

pytestmark = [pytest.mark.timeout(120)]


# What a member of a round of two can wait for -------------------------------------------------------------------

def nobody_publishes(stack: ExitStack, store: Store) -> int:
    return store.port


def rendezvous_is_silent(stack: ExitStack, store: Store) -> int:
    return stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]


def rendezvous_is_crowded(stack: ExitStack, store: Store) -> int:
    server, clients = crowded()
    for each in (server, *clients):
        stack.enter_context(each)
    return server.getsockname()[1]


def peer_is_to_connect(stack: ExitStack, store: Store) -> int:
    store.values["/global/1"] = published(HIGHEST)  # the higher address connects to the lower one
    return store.port


def peer_takes_no_connection(stack: ExitStack, store: Store) -> int:
    server, clients = crowded()
    for each in (server, *clients):
        stack.enter_context(each)
    store.values["/global/1"] = published(server.getsockname())
    return store.port


def peer_is_silent(stack: ExitStack, store: Store) -> int:
    server = stack.enter_context(lower_listener(backlog=8))
    store.values["/global/1"] = published(server.getsockname())
    return store.port


@pytest.mark.parametrize("waiting", [nobody_publishes, rendezvous_is_silent, rendezvous_is_crowded,
                                     peer_is_to_connect, peer_takes_no_connection, peer_is_silent])
def test_whatever_forming_waits_for_it_can_be_called_off(
        waiting: Callable[[ExitStack, Store], int], fork: Callable, store: Callable[[], Store]) -> None:
    member, = fork(1)
    with ExitStack() as stack:
        port = waiting(stack, store())
        before = member.do("numbers")
        member.do("users_socket")
        number = begin(member, **place(port, 0, 2))
        member.waits(number)
        member.do("users_socket")  # opened while Horovod opens its own
        called_off = member.answer(member.send("abandon"))["at"]
        answer = broken_soon(member, number)
        print(f"{waiting.__name__}: {1000 * (answer['at'] - called_off):.1f} ms")
        assert "Horovod initialization failed" in answer["text"]
    assert member.do("users_socket_works"), "sockets that are not the round's must live"
    after = member.do("numbers")
    assert (after["threads"], after["files"]) == (before["threads"], before["files"] + 4)
    other, = fork(1)
    form([member, other], store())  # and the next round is formed in the same process


# Members that die or stop while the round is forming ------------------------------------------------------------

@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_a_member_goes_after_it_has_published_its_address(
        fault: signal.Signals, fork: Callable, store: Callable[[], Store]) -> None:
    survivors, broken = fork(2), store()
    victim, = fork(1)
    begin(victim, **place(broken.port, 2, 3))
    broken.wait_for("/global/2")
    victim.signal(fault)
    begun = start(survivors, broken, size=3)
    broken.wait_for("/global/0", "/global/1")
    time.sleep(0.1)  # by now each of them waits for the victim, or has found that it is gone, or for the other one
    for member in survivors:
        member.do("abandon")
    for member, number in zip(survivors, begun):
        broken_soon(member, number)
    form([*survivors, *fork(1)], store())
    victim.signal(signal.SIGCONT)


def test_a_member_stops_or_is_called_off_at_any_moment(fork: Callable, store: Callable[[], Store]) -> None:
    first, second = fork(2)
    for milliseconds in (0, 1, 2, 4, 6, 9, 13, 20, 40):
        victim, = fork(1)
        begun = start([first, victim, second], store())
        time.sleep(milliseconds / 1000)
        victim.signal(signal.SIGSTOP)
        for member, number in ((first, begun[0]), (second, begun[2])):
            call_off(member, number)
        victim.signal(signal.SIGKILL)
        form([first, second], store())
        close([first, second])


def test_a_peer_that_dies_between_its_connection_and_the_first_look_at_it(
        fork: Callable, store: Callable[[], Store]) -> None:
    """gloo's own thread threw there, and aborted the process."""
    member, = fork(1)
    here = store()
    here.values["/global/1"] = published(HIGHEST)
    number = begin(member, **place(here.port, 0, 2))
    here.wait_for("/global/0")
    member.waits(number, 0.1)
    member.signal(signal.SIGSTOP)
    with socket.create_connection(addresses(here.values["/global/0"])[0]) as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close with a reset
    member.signal(signal.SIGCONT)
    broken_soon(member, number)
    form([member, *fork(1)], store())


# Calling off too early, too late, and after the end -------------------------------------------------------------

def test_called_off_before_it_has_begun(fork: Callable, store: Callable[[], Store]) -> None:
    member, = fork(1)
    for size in (1, 2):
        member.do("prepare", **place(store().port, 0, size))
        member.do("abandon")
        assert "called off" in broken_soon(member, member.send("run"))["text"]
    form([member, *fork(1)], store())


def test_called_off_when_it_has_been_formed(fork: Callable, store: Callable[[], Store]) -> None:
    members = fork(3)
    form(members, store())
    begun = [member.send("reduce", value=1.0, times=1_000_000) for member in members[:2]]
    members[0].waits(begun[0], 0.1)
    members[0].do("abandon")
    for member, number in zip(members, begun):
        broken_soon(member, number)
    close(members)


def test_a_former_round_is_cut_without_effect(fork: Callable, store: Callable[[], Store]) -> None:
    members = fork(2)
    form(members, store())
    close(members)
    for member in members:
        member.do("users_socket")  # takes the file descriptors that the round has given back
        assert member.do("cut") == 0
        assert member.do("users_socket_works")
        member.do("keep_forming")
    form(members, store())
    for member in members:
        member.do("abandon_kept")
    check_sum(members)
    assert members[0].do("cut") == 1


# At work --------------------------------------------------------------------------------------------------------

def test_a_broadcast_is_bounded(fork: Callable, store: Callable[[], Store]) -> None:
    members = fork(2)
    form(members, store(), timeout=1.0)
    begun = [member.send("broadcast", value=float(rank)) for rank, member in enumerate(members)]
    assert [member.answer(number).get("value") for member, number in zip(members, begun)] == [0.0, 0.0]
    answer = members[1].answer(members[1].send("broadcast", value=1.0), SOON)
    assert answer.get("error") == "Unanswered" and "comm.timeout" in answer["text"], answer


@pytest.mark.parametrize("victim", [0, 1])
def test_a_message_that_is_half_sent_does_not_hold_the_survivor(
        victim: int, fork: Callable, store: Callable[[], Store]) -> None:
    """It waited for gloo's time-out, whether the peer had died or its own sockets had been cut."""
    members = fork(2)
    form(members, store())
    begun = [member.send("broadcast", value=1.0, count=100_000_000) for member in members]
    members[1 - victim].waits(begun[1 - victim], 0.15)
    members[victim].signal(signal.SIGSTOP)
    members[1 - victim].waits(begun[1 - victim], 0.3)
    assert members[1 - victim].do("cut") == 1
    broken_soon(members[1 - victim], begun[1 - victim])


@pytest.mark.parametrize("victim", [0, 1])
def test_sums_that_are_being_started_when_a_peer_dies_do_not_freeze_the_survivor(
        victim: int, fork: Callable, store: Callable[[], Store]) -> None:
    """One survivor in many did: the engine's thread gave the outstanding tensors back, for which it needs Python's
    lock, while it held the lock of their queue; the main thread waited for that one with Python's in its hands."""
    members = fork(2)
    form(members, store())
    number = members[1 - victim].send("flood")
    members[1 - victim].waits(number, 0.2)
    members[victim].signal(signal.SIGKILL)
    assert members[1 - victim].answer(number, SOON).get("error") == "HorovodInternalError"
    close(members[1 - victim:2 - victim])
    form([members[1 - victim], *fork(1)], store())


@pytest.mark.parametrize("layout, connections", [
    ([(0, 4, 0, 1), (1, 4, 0, 1), (2, 4, 0, 1), (3, 4, 0, 1)], 3),  # one host: one mesh
    ([(0, 1, 0, 4), (0, 1, 1, 4), (0, 1, 2, 4), (0, 1, 3, 4)], 3),  # four hosts: one mesh
    ([(0, 2, 0, 2), (1, 2, 0, 2), (0, 2, 1, 2), (1, 2, 1, 2)], 5),  # two hosts: world, host, cross
    ([(1, 4, 0, 1), (0, 4, 0, 1), (2, 4, 0, 1), (3, 4, 0, 1)], 6),  # a host that numbers otherwise than the world
], ids=["host", "four", "square", "swapped"])
def test_no_mesh_is_made_twice(layout: list[tuple[int, ...]], connections: int,
                               fork: Callable, store: Callable[[], Store]) -> None:
    members, here = fork(4), store()
    begun = []
    for rank, (member, (local_rank, local_size, cross_rank, cross_size)) in enumerate(zip(members, layout)):
        begun.append(begin(member, **place(
            here.port, rank, 4, local_rank=local_rank, local_size=local_size, cross_rank=cross_rank,
            cross_size=cross_size, host=f"host{cross_rank}")))
    formed(members, begun)
    assert [tuple(member.do("layout")) for member in members] == layout
    assert members[0].do("cut") == connections


# Again and again ------------------------------------------------------------------------------------------------

def replace_again_and_again(rounds: int, fork: Callable, store: Callable[[], Store]) -> None:
    """The last member dies at work, the survivors leave and form the next round with a new one."""
    survivors, before = fork(2), []
    for count in range(rounds):
        if count == rounds // 5:
            before = [member.do("numbers") for member in survivors]
        here = store()
        members = [*survivors, *fork(1)]
        form(members, here)
        begun = [member.send("reduce", value=1.0, times=1_000_000) for member in survivors]
        members[2].signal(signal.SIGKILL)
        for member in survivors:
            member.do("cut")
        for member, number in zip(survivors, begun):
            broken_soon(member, number)
        close(survivors)
        here.close()
    for early, late in zip(before, [member.do("numbers") for member in survivors]):
        print(f"{rounds} rounds: {early['kilobytes']} -> {late['kilobytes']} kB")
        assert (late["threads"], late["files"]) == (early["threads"], early["files"])
        assert late["kilobytes"] < early["kilobytes"] + 4096


def test_ten_rounds_leave_nothing_behind(fork: Callable, store: Callable[[], Store]) -> None:
    replace_again_and_again(10, fork, store)


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(3))
def test_faults_at_random_moments(seed: int, fork: Callable, store: Callable[[], Store]) -> None:
    """Nobody hangs, nobody is aborted, whoever is called off raises: 300 rounds of 2 to 4 members each."""
    chance = random.Random(seed)
    pool: list[Member] = fork(4)
    for _ in range(300):
        members = chance.sample(pool, chance.randint(2, 4))
        fault = chance.choice([signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT])  # the last one does no harm
        victims = members[chance.randrange(1, len(members)):]
        here, count = store(), chance.choice([3, 3_000_000])
        begun = start(members, here)
        time.sleep(chance.choice([0.0, 0.03, 0.2]) * chance.random())
        work = {member: member.send("reduce", value=1.0, count=count) for member in members}
        time.sleep(chance.choice([0.0, 0.03]) * chance.random())
        for victim in victims:
            victim.signal(fault)
        for member, number in zip(members, begun):
            if member not in victims or fault == signal.SIGCONT:
                member.do("abandon")
                assert member.answer(number, SOON).get("error") in (None, "RoundBroken")
                # The second is that of a member that got no world.
                assert member.answer(work[member], SOON).get("error") in (None, "AttributeError", "RoundBroken")
                member.do("close")
        if fault != signal.SIGCONT:
            for victim in victims:
                victim.signal(signal.SIGKILL)
                pool.remove(victim)
            pool += fork(len(victims))
        here.close()


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_hundreds_of_rounds_leave_nothing_behind(fork: Callable, store: Callable[[], Store]) -> None:
    replace_again_and_again(300, fork, store)
