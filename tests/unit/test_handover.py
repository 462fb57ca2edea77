"""A state goes to exactly those that lack it, whoever else comes and whatever they say."""

from __future__ import annotations

import socket

import pytest

from hvtrain.control import auth
from hvtrain.engine.handover import Fetch, Offer, fetch, wire
from hvtrain.errors import EnvironmentNotReady, ProtocolError, RoundBroken, UserCodeError
from tests.support.handover import (  # noqa: F401 - fixtures among them
    BIG_STATE, GREETING, HOST, LONG, SOON, TOKEN, at_once, false_giver, giver_proof, greeted, groups, guest, message,
    nothing_is_left_open, offer, plain, pool,
)


def test_every_tensor_and_the_state_arrive(offer, pool):
    sent = groups()
    receipt = Fetch(offer.address, TOKEN, timeout=LONG)
    found = pool.submit(receipt.run)
    count = offer.serve(1, sent, {"optimizer": {"lr": 0.1}, "none": None}, timeout=LONG)
    assert plain(found.result(10)) == plain(sent) and list(found.result()) == ["model", "optimizer", "ema"]
    assert receipt.state == {"optimizer": {"lr": 0.1}, "none": None}
    assert count > sum(len(entry[-1]) for entry in plain(sent))


def test_what_arrives_is_writable_and_its_own(offer, pool):
    found = pool.submit(fetch, offer.address, TOKEN, timeout=LONG)
    offer.serve(1, groups(), timeout=LONG)
    array = found.result(10)["model"]["w"].to_numpy()
    array += 1
    assert array.ctypes.data % 64 == 0


def test_several_are_served_at_once_and_the_offer_can_serve_again(offer, pool):
    for size in (5, 3_000_000):
        found = [pool.submit(fetch, offer.address, TOKEN, timeout=LONG) for _ in range(3)]
        offer.serve(3, groups(size), timeout=LONG)
        for each in found:
            assert plain(each.result(10)) == plain(groups(size))


def test_nobody_lacks_the_state(offer):
    assert offer.serve(0, groups(), timeout=LONG) == 0


def test_empty_groups(offer, pool):
    found = pool.submit(fetch, offer.address, TOKEN, timeout=LONG)
    offer.serve(1, {}, timeout=LONG)
    assert found.result(10) == {}


def test_ipv6(pool):
    try:
        offer = Offer("::1", TOKEN)
    except EnvironmentNotReady:
        pytest.skip("no IPv6 here")
    with offer:
        found = pool.submit(fetch, offer.address, TOKEN, timeout=LONG)
        offer.serve(1, groups(), timeout=LONG)
        assert plain(found.result(10)) == plain(groups())


def test_an_address_that_is_not_here():
    with pytest.raises(EnvironmentNotReady, match="192.0.2.1"):
        Offer("192.0.2.1", TOKEN)


def test_state_that_json_cannot_hold(offer):
    with pytest.raises(UserCodeError, match="state.x"):
        offer.serve(1, {}, {"x": object()}, timeout=LONG)


# Strangers


def test_strangers_neither_harm_nor_block(offer, pool, caplog):
    def connection():
        return socket.create_connection(offer.address, timeout=10)

    strangers = [connection() for _ in range(20)]  # silent
    for garbage in (b"\xff" * 5000, b"GET / HTTP/1.1\r\n\r\n" * 20, b"", b"0" * 64, "é".encode() * 200):
        strangers.append(connection())
        strangers[-1].sendall(garbage)
    connection().close()
    serving = pool.submit(offer.serve, 2, BIG_STATE, timeout=LONG)
    sock, nonce = greeted(offer.address)
    sock.sendall(auth.answer(TOKEN, nonce).encode())  # the token itself, as the coordinator wants it
    other, nonce = greeted(offer.address)
    other.sendall(auth.answer(wire.receiver_token(auth.new_token()), nonce).encode())
    assert (sock.recv(1), other.recv(1)) == (b"", b"")
    found = [pool.submit(fetch, offer.address, TOKEN, timeout=LONG) for _ in range(2)]
    assert all(plain(each.result(20)) == plain(BIG_STATE) for each in found)
    serving.result(10)
    assert "does not prove" in caplog.text and TOKEN not in caplog.text
    for each in (*strangers, sock, other):
        each.close()


def test_a_crowd_of_silent_strangers_is_thinned_out(offer, pool):
    strangers = [socket.create_connection(offer.address, timeout=10) for _ in range(200)]
    found = pool.submit(fetch, offer.address, TOKEN, timeout=LONG)
    offer.serve(1, groups(), timeout=LONG)
    assert plain(found.result(10)) == plain(groups())
    for each in strangers:
        each.close()


def test_a_crowd_from_another_host_does_not_crowd_out_a_member(offer, pool, caplog):
    serving = pool.submit(offer.serve, 1, groups(), timeout=LONG)
    member, nonce = greeted(offer.address)
    crowd = [socket.create_connection(offer.address, timeout=10, source_address=("127.0.0.66", 0)) for _ in range(150)]
    assert crowd[0].recv(wire.GREETING_BYTES, socket.MSG_WAITALL) and crowd[0].recv(1) == b"", "the oldest of the crowd went"
    member.sendall(auth.answer(wire.receiver_token(TOKEN), nonce).encode())
    assert len(member.recv(wire.PROOF_BYTES, socket.MSG_WAITALL)) == wire.PROOF_BYTES
    assert len(caplog.records) < 60, "and the log is not filled"
    member.close()
    with pytest.raises(RoundBroken):
        serving.result(SOON)
    for each in crowd:
        each.close()


def test_a_proof_cannot_be_used_twice(offer, pool):
    serving = pool.submit(offer.serve, 2, groups(), timeout=LONG)
    first, nonce = greeted(offer.address)
    proof = auth.answer(wire.receiver_token(TOKEN), nonce).encode()
    second, _ = greeted(offer.address)
    second.sendall(proof)
    assert second.recv(1) == b""
    first.sendall(proof)
    assert len(first.recv(wire.PROOF_BYTES, socket.MSG_WAITALL)) == wire.PROOF_BYTES
    offer.cut()
    with pytest.raises(RoundBroken):
        serving.result(SOON)
    first.close()
    second.close()


def test_a_receiver_without_the_token_gets_nothing(offer, pool):
    serving = pool.submit(offer.serve, 1, groups(), timeout=0.5)
    with pytest.raises(RoundBroken):
        fetch(offer.address, auth.new_token(), timeout=LONG)
    with pytest.raises(RoundBroken, match="1 of the members that lack the state have not come"):
        serving.result(5)


# False and broken givers


@pytest.mark.parametrize("answers", [
    (b"SSH-2.0-OpenSSH_9".ljust(80),),
    (GREETING, b"\xff" * 129),
    (GREETING, lambda heard: heard),  # its own proof back
    (GREETING, lambda heard: auth.answer(TOKEN, heard[:64].decode()).encode()),
    (GREETING, lambda heard: auth.answer(wire.receiver_token(TOKEN), heard[:64].decode()).encode()),
    (GREETING, lambda heard: giver_proof(heard) + message(b"", 2**63)),
    (GREETING, lambda heard: giver_proof(heard) + message(b"", wire.MAX_OUTLINE + 1)),
    *((GREETING, lambda heard, text=text: giver_proof(heard) + message(text)) for text in (
        b"", b"\xff", b"[]", b"{}", b"[" * 100_000, b'{"outline": [], "state": []}', b'{"outline": [[]], "state": {}}',
        b'{"outline": [["m", [["w", "F32", [-4]]]]], "state": {}}',
        b'{"outline": [["m", [["w", "X", [4]]]]], "state": {}}',
        b'{"outline": [["m", [["w", "F64", [4611686018427387904, 4611686018427387904]]]]], "state": {}}',
        b'{"outline": [["m", [["w", "U8", [100000000000000000]]]]], "state": {}}')),
])
def test_a_giver_that_cannot_be_ours_is_refused(pool, answers):
    address, done = false_giver(pool, *answers)
    with pytest.raises(ProtocolError):
        fetch(address, TOKEN, timeout=LONG)
    done.result(5)


def test_what_a_receiver_proves_is_worth_nothing_elsewhere(pool):
    nonce = auth.challenge()  # the coordinator's, handed on by a false giver
    address, heard = false_giver(pool, wire.MAGIC + nonce.encode(), b"")
    with pytest.raises(RoundBroken):
        fetch(address, TOKEN, timeout=LONG)
    text = heard.result(5).decode()
    assert len(text) == wire.PROOF_BYTES and not auth.proves(TOKEN, nonce, text)
    assert not auth.proves(wire.giver_token(TOKEN), nonce, text)


@pytest.mark.parametrize("kept", [0, 1, 79, 80, 100, 209, 213, 217, 230, 300, -1])
def test_a_stream_that_ends_early_is_a_broken_round(pool, kept):
    whole = b"".join(wire.encode(groups(), {}))
    before = len(GREETING)
    cut_off = (GREETING[:kept],) if 0 <= kept <= before else (
        GREETING, lambda heard: (giver_proof(heard) + whole)[:kept - before if kept > 0 else kept])
    address, done = false_giver(pool, *cut_off)
    with pytest.raises(RoundBroken, match="gone|closed"):
        fetch(address, TOKEN, timeout=LONG)
    done.result(5)


def test_nobody_listens():
    with Offer(HOST, TOKEN) as offer:
        address = offer.address
    with at_once(), pytest.raises(RoundBroken, match="gone"):
        fetch(address, TOKEN, timeout=LONG)


@pytest.mark.parametrize("address", [("localhost", 80), ("example.invalid", 80), (HOST, 70000), (HOST, -1)])
def test_an_address_is_numbers(address):
    with pytest.raises(ProtocolError, match="numeric"):
        fetch(address, TOKEN, timeout=LONG)


def test_a_receiver_may_only_confirm(offer, pool):
    for data, error in ((b"x", ProtocolError), (wire.RECEIVED, ProtocolError), (b"", RoundBroken)):
        serving = pool.submit(offer.serve, 1, BIG_STATE, timeout=LONG)
        with guest(offer.address) as sock:
            sock.sendall(data)
            if not data:
                sock.shutdown(socket.SHUT_WR)
            with pytest.raises(error):
                serving.result(SOON)
