"""What the tests of a handover share: states, fixtures, raw connections, false givers."""

from __future__ import annotations

import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest

from hvtrain.checkpoint import Blob
from hvtrain.control import auth
from hvtrain.engine.handover import Offer, wire

HOST = "127.0.0.1"
TOKEN = auth.new_token()
LONG = 60.0  # seconds that nobody is to wait for
SOON = 5.0  # far below LONG; what goes without waiting takes milliseconds, on a machine that is not busy
BIG = 40 << 20  # bytes that no socket buffer holds
BIG_STATE = {"model": {"w": Blob("U8", (BIG,), bytes(BIG))}}


def groups(size=1000):
    random = np.random.default_rng(size)
    return {"model": {"w": Blob.from_numpy(random.standard_normal(size).astype(np.float32)),
                      "ü/none": Blob("F32", (0, 4), b""), "steps": Blob.from_numpy(np.array(7, np.int64))},
            "optimizer": {"w/m": Blob("BF16", (3, 1), bytes(range(6))), **{f"p{n}": Blob("U8", (n,), bytes([n]) * n)
                                                                             for n in range(200)}},
            "ema": {}}


def plain(found):
    return [(group, name, blob.dtype, blob.shape, bytes(blob.data))
            for group, blobs in found.items() for name, blob in blobs.items()]


@contextmanager
def at_once():
    begun = time.monotonic()
    yield
    assert time.monotonic() - begun < SOON


def greeted(address):
    """A raw connection that has been greeted, and the nonce."""
    sock = socket.create_connection(address, timeout=10)
    greeting = sock.recv(wire.GREETING_BYTES, socket.MSG_WAITALL)
    assert greeting.startswith(wire.MAGIC)
    return sock, greeting[len(wire.MAGIC):].decode()


def guest(address):
    """A raw connection that has proven itself and reads nothing."""
    sock, nonce = greeted(address)
    sock.sendall(auth.answer(wire.receiver_token(TOKEN), nonce).encode())
    return sock


@pytest.fixture
def offer():
    with Offer(HOST, TOKEN) as offer:
        yield offer


@pytest.fixture
def pool():
    with ThreadPoolExecutor(8) as pool:
        yield pool


@pytest.fixture(autouse=True)
def nothing_is_left_open():
    before = os.listdir("/proc/self/fd")
    yield
    assert len(os.listdir("/proc/self/fd")) == len(before)


def false_giver(pool, *answers):
    """Sends each answer after it has got something (the first at once), then closes. Its address, and what it got."""
    listener = socket.create_server((HOST, 0))

    def serve():
        heard = b""
        with listener, listener.accept()[0] as sock:
            for number, part in enumerate(answers):
                if number:
                    heard += sock.recv(4096)
                sock.sendall(part(heard) if callable(part) else part)
        return heard

    return listener.getsockname(), pool.submit(serve)


GREETING = wire.MAGIC + auth.challenge().encode()


def giver_proof(heard):
    return auth.answer(wire.giver_token(TOKEN), heard[:64].decode()).encode()


def message(text, length=None):
    return (len(text) if length is None else length).to_bytes(8, "little") + text
