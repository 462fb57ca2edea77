"""A round with a secret: its members connect whatever strangers do to their ports, and nobody else gets in."""

from __future__ import annotations

import random
import signal
import socket
import threading
import time
from contextlib import ExitStack, closing
from typing import Callable

import pytest

from engine_members import (
    HIGHEST, SOON, Member, addresses, begin, broken_soon, call_off, close, form, formed, lower_listener, place, published,
    start)
from engine_store import Store
from engine_sums import form_hosts
from hvtrain.engine import roundsecret
from tests.support import proof
from tests.support.proof import ANSWER, HELLO, Names

pytestmark = [pytest.mark.timeout(120)]
SECRET, OTHER = "5e" * 32, "07" * 32


def ports(here: Store, rank: int) -> list[tuple[str, int]]:
    """Where that rank listens for each of the others."""
    here.wait_for(f"/global/{rank}")
    return addresses(here.values[f"/global/{rank}"])


def listening(member: Member, here: Store, **more: object) -> tuple[int, Names]:
    """Have this member wait, as rank 0, for a connection of rank 1, which is nobody but the test."""
    here.values["/global/1"] = published(HIGHEST)  # the higher address connects to the lower one
    number = begin(member, **place(here.port, 0, 2, secret=SECRET, **more))
    return number, Names(1, 0, ports(here, 0)[0])


def is_taken_for_the_peer(names: Names) -> None:
    """The member takes a connection that proves itself, and begins to talk to it as gloo does."""
    with socket.create_connection(names.address, 10) as peer:
        peer.settimeout(SOON)
        assert proof.prove(peer, SECRET, names)
        assert len(proof.received(peer, 8)) == 8, "a peer hears of the barrier after the connections"


def closed(connection: socket.socket) -> bool:
    connection.settimeout(SOON)
    return proof.received(connection, 1) == b""


def test_a_round_forms_works_and_leaves_no_secret_behind(fork: Callable, store: Callable[[], Store]) -> None:
    members = fork(4)
    for size in (2, 3, 4):
        here = store()
        form(members[:size], here, secret=SECRET)
        assert here.paths == {roundsecret.path(SECRET)}
        for member in members[:size]:
            assert member.do("variable", name=roundsecret.VARIABLE) is None
        close(members[:size])
    form_hosts(members, store(), [[0, 1], [2, 3]], secret=SECRET)  # three meshes
    close(members)
    form(members, store())  # and the next one without


# Strangers ------------------------------------------------------------------------------------------------------

def silent(connection: socket.socket, names: Names) -> None:
    pass


def garbage(connection: socket.socket, names: Names) -> None:
    connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 10)
    assert closed(connection)


def zeros(connection: socket.socket, names: Names) -> None:
    connection.sendall(bytes(HELLO))
    assert closed(connection)


def another_secret(connection: socket.socket, names: Names) -> None:
    assert not proof.prove(connection, OTHER, names)


def another_rank(connection: socket.socket, names: Names) -> None:
    assert not proof.prove(connection, SECRET, Names(names.listener, names.connector, names.address))


def slow(connection: socket.socket, names: Names) -> None:
    for byte in bytes(HELLO - 1):
        connection.sendall(bytes([byte]))
        time.sleep(0.002)


STRANGERS = [silent, garbage, zeros, another_secret, another_rank, slow]


def test_strangers_who_come_first_do_not_take_the_peers_place(fork: Callable, store: Callable[[], Store]) -> None:
    """Each port of three ranks gets all of them; then comes the fourth, and all connections can be made."""
    members, here = fork(4), store()
    begun = [begin(member, **place(here.port, rank, 4, secret=SECRET)) for rank, member in enumerate(members[:3])]
    with ExitStack() as stack:
        for rank in range(3):
            for at, address in enumerate(ports(here, rank)):
                peer = at if at < rank else at + 1
                if peer != 3:  # those that are awaited by nobody any more may be closed
                    continue
                for stranger in STRANGERS:
                    connection = stack.enter_context(socket.create_connection(address, 10))
                    connection.settimeout(SOON)
                    stranger(connection, Names(peer, rank, address))
        begun.append(begin(members[3], **place(here.port, 3, 4, secret=SECRET)))
        formed(members, begun)
    close(members)


def test_a_recorded_exchange_opens_nothing(fork: Callable, store: Callable[[], Store]) -> None:
    member, = fork(1)
    here = store()
    number, names = listening(member, here)
    with socket.create_connection(names.address, 10) as victim:  # its proof is recorded, and does not arrive
        victim.settimeout(SOON)
        said = proof.hello(SECRET, names)
        victim.sendall(said)
        answered = proof.received(victim, ANSWER)
    for recorded in (said, said + proof.proof(SECRET, names, said, answered)):
        with socket.create_connection(names.address, 10) as replay:
            replay.settimeout(SOON)
            replay.sendall(recorded)
            assert closed(replay)
    member.waits(number, 0.1)
    is_taken_for_the_peer(names)


def test_a_thousand_connections_are_survived(fork: Callable, store: Callable[[], Store]) -> None:
    member, other = fork(2)
    here = store()
    before = member.do("numbers")["files"]
    number = begin(member, **place(here.port, 0, 2, secret=SECRET))
    address, = ports(here, 0)
    stop, failures = threading.Event(), []

    def flood() -> None:
        crowd: list[socket.socket] = []
        for count in range(1000):
            if stop.is_set() and count > 500:  # the port is closed by now
                break
            try:
                crowd.append(socket.create_connection(address, 10))
                crowd[-1].sendall(bytes(count % 3 * 40))
            except OSError as error:  # the port is not there any more
                if not stop.is_set():
                    failures.append(error)
                break
        for each in crowd:
            each.close()

    thread = threading.Thread(target=flood)
    thread.start()
    time.sleep(0.05)
    assert member.do("numbers")["files"] <= before + 25
    stop.set()
    joined = begin(other, **place(here.port, 1, 2, secret=SECRET))
    formed([member, other], [number, joined])
    thread.join()
    assert not failures
    close([member, other])
    assert member.do("numbers")["files"] <= before + 4


# Those who cannot prove themselves ------------------------------------------------------------------------------

def test_another_secret_fails_within_the_timeout_and_says_so(fork: Callable, store: Callable[[], Store]) -> None:
    members, here = fork(2), store()  # this store lets both in
    begun = [begin(member, **place(here.port, rank, 2, timeout=2.0, secret=secret))
             for rank, (member, secret) in enumerate(zip(members, (SECRET, OTHER)))]
    texts = sorted(broken_soon(member, number)["text"] for member, number in zip(members, begun))
    assert any("have connected none has proven to be rank" in text and "HVTRAIN_ROUND_SECRET" in text for text in texts)
    assert any("does not take this process for rank" in text or "Connection refused" in text for text in texts), texts
    form(members, store(), secret=SECRET)


def test_a_listener_that_does_not_prove_itself_gets_no_tensor(fork: Callable, store: Callable[[], Store]) -> None:
    member, = fork(1)
    for answer in ("another secret", "mirror", "noise"):
        here, server = store(), lower_listener(backlog=8)
        with server:
            names = Names(0, 1, server.getsockname())
            here.values["/global/1"] = published(names.address)
            number = begin(member, **place(here.port, 0, 2, secret=SECRET))
            with server.accept()[0] as connection:
                connection.settimeout(SOON)
                said = proof.received(connection, HELLO)
                assert said == proof.hello(SECRET, names, said[:proof.NONCE])
                connection.sendall({"another secret": proof.answer(OTHER, names, said), "mirror": said,
                                    "noise": bytes(1000)}[answer])
                assert closed(connection), "not a byte for who is no member"
        assert "has not proven to be rank 1 of this round" in broken_soon(member, number)["text"]


# Peers that go in the middle of it ------------------------------------------------------------------------------

def test_a_connection_that_ends_in_the_middle_is_not_the_last_one(fork: Callable, store: Callable[[], Store]) -> None:
    member, = fork(1)
    number, names = listening(member, store())
    for sent, answered in ((10, 0), (HELLO, 0), (HELLO, ANSWER)):
        with socket.create_connection(names.address, 10) as peer:
            peer.sendall(proof.hello(SECRET, names)[:sent])
            assert len(proof.received(peer, answered)) == answered
    member.waits(number, 0.1)
    is_taken_for_the_peer(names)


def test_a_listener_that_closes_is_tried_again_until_it_is_gone(fork: Callable, store: Callable[[], Store]) -> None:
    member, = fork(1)
    here, server = store(), lower_listener(backlog=8)
    with server:
        here.values["/global/1"] = published(server.getsockname())
        number = begin(member, **place(here.port, 0, 2, secret=SECRET))
        for _ in range(3):
            server.accept()[0].close()
    assert "refused" in broken_soon(member, number)["text"]
    form([member, *fork(1)], store(), secret=SECRET)


def test_strangers_who_take_all_places_for_a_while_only_delay_it(fork: Callable, store: Callable[[], Store]) -> None:
    """All attempts were over within a few milliseconds, which a flood of connections easily outlasts."""
    member, = fork(1)
    here, server = store(), lower_listener(backlog=8)
    with server:
        names = Names(0, 1, server.getsockname())
        here.values["/global/1"] = published(names.address)
        number = begin(member, **place(here.port, 0, 2, secret=SECRET))
        server.accept()[0].close()
        turned_away, until = 1, time.monotonic() + 0.3
        while time.monotonic() < until:
            server.accept()[0].close()
            turned_away += 1
        assert turned_away < 16
        with server.accept()[0] as connection:
            connection.settimeout(SOON)
            said = proof.received(connection, HELLO)
            answered = proof.answer(SECRET, names, said)
            connection.sendall(answered)
            assert proof.received(connection, proof.PROOF) == proof.proof(SECRET, names, said, answered)
    broken_soon(member, number)


def test_who_waits_for_an_answer_does_not_dial_again_in_a_round_that_is_called_off(
        fork: Callable, store: Callable[[], Store]) -> None:
    """Its socket is shut, which looks as if the listener had closed; all sixteen attempts followed, with a pause each."""
    member, = fork(1)
    here, server = store(), lower_listener(backlog=32)
    with server:
        here.values["/global/1"] = published(server.getsockname())
        number = begin(member, **place(here.port, 0, 2, secret=SECRET))
        with server.accept()[0] as connection:
            proof.received(connection, HELLO)
            member.do("abandon")
            broken_soon(member, number)
        server.settimeout(0.0)
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.mark.parametrize("waiting", ["for a hello", "for the proof", "for an answer"])
def test_it_can_be_called_off_in_the_middle(waiting: str, fork: Callable, store: Callable[[], Store]) -> None:
    member, = fork(1)
    before = member.do("numbers")
    with ExitStack() as stack:
        if waiting == "for an answer":
            here, server = store(), stack.enter_context(lower_listener(backlog=8))
            here.values["/global/1"] = published(server.getsockname())
            number = begin(member, **place(here.port, 0, 2, secret=SECRET))
            connection = stack.enter_context(server.accept()[0])
            proof.received(connection, HELLO)
        else:
            number, names = listening(member, store())
            connection = stack.enter_context(socket.create_connection(names.address, 10))
            if waiting == "for the proof":
                connection.sendall(proof.hello(SECRET, names))
                proof.received(connection, ANSWER)
        member.waits(number, 0.1)
        member.do("abandon")
        broken_soon(member, number)
        assert closed(connection)
    after = member.do("numbers")
    assert (after["threads"], after["files"]) == (before["threads"], before["files"])
    form([member, *fork(1)], store(), secret=SECRET)


def test_a_member_stops_or_dies_at_any_moment(fork: Callable, store: Callable[[], Store]) -> None:
    first, second = fork(2)
    for milliseconds in (1, 3, 5, 8, 12, 20, 30):
        for fault in (signal.SIGSTOP, signal.SIGKILL):
            victim, = fork(1)
            begun = start([first, victim, second], store(), secret=SECRET)
            time.sleep(milliseconds / 1000)
            victim.signal(fault)
            for member, number in ((first, begun[0]), (second, begun[2])):
                call_off(member, number)
            victim.signal(signal.SIGKILL)
    form([first, second], store(), secret=SECRET)


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(2))
def test_strangers_and_faults_at_random_moments(seed: int, fork: Callable, store: Callable[[], Store]) -> None:
    """200 rounds of 2 to 4 members, at whose ports strangers knock all the time: undisturbed ones always form."""
    chance = random.Random(seed)
    pool: list[Member] = fork(4)
    for _ in range(200):
        members, here = chance.sample(pool, chance.randint(2, 4)), store()
        faulty, over = chance.random() < 0.5, threading.Event()

        def knock() -> None:
            while not over.is_set():
                for value in list(here.values.values()):
                    for address in addresses(value):
                        try:
                            with socket.create_connection(address, 1) as connection:
                                connection.sendall(random.randbytes(random.choice([0, 10, HELLO, 500])))
                        except OSError:
                            pass
                time.sleep(0.001)

        knocking = threading.Thread(target=knock)
        knocking.start()
        begun = start(members, here, secret=SECRET)
        if faulty:
            time.sleep(0.04 * chance.random())
            members[-1].signal(chance.choice([signal.SIGKILL, signal.SIGSTOP]))
            for member, number in zip(members[:-1], begun):
                member.do("abandon")
                assert member.answer(number, SOON).get("error") in (None, "RoundBroken")
                member.do("close")
            members[-1].signal(signal.SIGKILL)
            pool.remove(members[-1])
            pool += fork(1)
        else:
            formed(members, begun)
            close(members)
        over.set()
        knocking.join()
        here.close()


def test_a_round_over_ipv6(fork: Callable) -> None:
    try:
        here = Store("::1")
    except OSError:
        pytest.skip("this machine has no IPv6")
    members = fork(2)
    env = {"HOROVOD_GLOO_RENDEZVOUS_ADDR": "::1", "HVTRAIN_GLOO_ADDRESS": "::1", roundsecret.VARIABLE: SECRET}
    with closing(here):
        begun = [member.send("init", env=here.env(rank, 2, **env)) for rank, member in enumerate(members)]
        assert [member.answer(number).get("value") for member, number in zip(members, begun)] == [2, 2]
        assert [member.do("listening") for member in members] == [["::1"], ["::1"]]
        numbers = [member.send("add", value=1.0) for member in members]
        assert [member.answer(number).get("value") for member, number in zip(members, numbers)] == [2.0, 2.0]
