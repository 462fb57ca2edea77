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


def test_the_token_is_in_no_answer_and_in_no_text():
    token = auth.new_token()
    assert token not in auth.answer(token, auth.challenge())
    assert token not in f"{Address('h', 1, token)} {Address('h', 1, token)!r}"
    assert len({auth.new_token() for _ in range(50)} | {auth.challenge() for _ in range(50)}) == 100
