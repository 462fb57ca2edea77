"""Who does not know the token cannot prove that it does, nor use again what somebody else has proven."""

from __future__ import annotations

import pytest

from hvtrain.control import auth
from hvtrain.control.client import Address


def test_the_right_token_is_enough():
    token, nonce = auth.new_token(), auth.challenge()
    assert auth.proves(token, nonce, auth.answer(token, nonce))


def test_a_wrong_token_is_not():
    nonce = auth.challenge()
    assert not auth.proves(auth.new_token(), nonce, auth.answer(auth.new_token(), nonce))


def test_an_answer_to_another_nonce_is_worth_nothing():
    token = auth.new_token()
    assert not auth.proves(token, auth.challenge(), auth.answer(token, auth.challenge()))


@pytest.mark.parametrize("text", ["", ":", "a:b", "é" * 64 + ":ü", "0" * 64, "0" * 64 + ":", ":" + "0" * 64, "\0" * 70])
def test_garbage_is_no_answer(text):
    assert not auth.proves(auth.new_token(), auth.challenge(), text)


def test_neither_half_of_an_answer_can_be_exchanged():
    token, nonce = auth.new_token(), auth.challenge()
    own, _, mac = auth.answer(token, nonce).partition(":")
    assert not auth.proves(token, nonce, f"{'0' * len(own)}:{mac}")
    assert not auth.proves(token, nonce, f"{own}:{mac[:-1]}{'0' if mac[-1] != '0' else '1'}")
    assert not auth.proves(token, nonce, f"{own}:{mac}:")


def test_the_server_shows_that_it_knows_the_token_too():
    token, nonce = auth.new_token(), auth.challenge()
    text = auth.answer(token, nonce)
    assert auth.is_countersigned(token, nonce, text, auth.countersign(token, nonce, text))
    assert not auth.is_countersigned(token, nonce, text, auth.countersign(auth.new_token(), nonce, text))
    assert not auth.is_countersigned(token, nonce, text, auth.countersign(token, auth.challenge(), text))
    assert not auth.is_countersigned(token, nonce, text, text.partition(":")[2])  # the client's own proof, sent back
    assert not auth.is_countersigned(token, nonce, text, "")


def test_a_proof_holds_on_its_own_channel_only():
    """A man in the middle shows each end another certificate."""
    token, nonce, ours, his = auth.new_token(), auth.challenge(), "a" * 64, "b" * 64
    text = auth.answer(token, nonce, his)
    assert auth.proves(token, nonce, text, his) and not auth.proves(token, nonce, text, ours)
    assert not auth.proves(token, nonce, text) and not auth.proves(token, nonce, auth.answer(token, nonce), ours)
    proof = auth.countersign(token, nonce, text, ours)
    assert auth.is_countersigned(token, nonce, text, proof, ours) and not auth.is_countersigned(token, nonce, text, proof, his)


def test_parts_cannot_be_moved_from_one_field_into_the_next():
    """A stranger chooses the nonce: no two lists of parts give the same text."""
    token = auth.new_token()
    for nonce, other in (("a|b", "a"), ("", "|"), ("64:x", "4:x")):
        assert auth._mac(token, "client", nonce, "c", "") != auth._mac(token, "client", other, "b|c", "")
    assert auth._mac(token, "client", "n", "c|d", "") != auth._mac(token, "client", "n", "c", "d")


def ends(channel=("", "")):
    token, nonce = auth.new_token(), auth.challenge()
    text = auth.answer(token, nonce)
    return (auth.Seals(token, nonce, text, channel[0], client=True), auth.Seals(token, nonce, text, channel[1], client=False))


def test_sealed_messages_come_in_order_and_from_the_other_end():
    client, server = ends()
    first, second = client.seal("eins"), client.seal("zwei ü")
    assert len(first) == len("eins") + auth.SEAL_CHARS
    assert server.open(second) is None, "not before the first"
    assert server.open(first) == "eins" and server.open(first) is None, "once only"
    assert client.open(second) is None, "not back to where it came from"
    assert server.open(second[:-1] + "u") is None and server.open("zwei ü") is None and server.open("") is None
    assert server.open(second) == "zwei ü"
    assert client.open(server.seal("drei")) == "drei"


def test_seals_of_another_connection_do_not_fit():
    (one, _), (_, other) = ends(), ends()
    assert other.open(one.seal("x")) is None
    client, server = ends(("a" * 64, "b" * 64))
    assert server.open(client.seal("x")) is None


def test_the_secret_of_a_round_is_not_what_the_seats_carry():
    token, nonce = auth.new_token(), auth.challenge()
    secret = auth.round_secret(token, nonce)
    assert len(secret) == 64 and secret not in (token, nonce) and auth.round_secret(token, auth.challenge()) != secret
    assert auth.round_secret(auth.new_token(), nonce) != secret and auth.round_secret(token, "") == ""


def test_the_token_is_in_no_answer_and_in_no_text():
    token = auth.new_token()
    assert token not in auth.answer(token, auth.challenge())
    assert token not in f"{Address('h', 1, token)} {Address('h', 1, token)!r}"
    assert len({auth.new_token() for _ in range(50)} | {auth.challenge() for _ in range(50)}) == 100
