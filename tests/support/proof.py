"""The proof of membership as hvtrain/engine/native/hvtrain_proof.h describes it, written a second time: for tests."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import socket
import struct
from dataclasses import dataclass

NONCE, HELLO, ANSWER, PROOF = 32, 64, 64, 32
"""Bytes of a nonce and of the three messages."""


@dataclass(frozen=True)
class Names:
    """Both ranks, and where the listener listens."""

    connector: int
    listener: int
    address: tuple[str, int]

    def packed(self) -> bytes:
        host, port = self.address
        six = ":" in host
        family = socket.AF_INET6 if six else socket.AF_INET
        return (struct.pack(">IIBH", self.connector, self.listener, 6 if six else 4, port)
                + socket.inet_pton(family, host).ljust(16, b"\0"))


def code(secret: str, role: str, names: Names, connectors: bytes, listeners: bytes = b"") -> bytes:
    text = b"hvtrain gloo 1 " + role.encode() + b"\0" + names.packed() + connectors + listeners
    return hmac.new(secret.encode(), text, hashlib.sha256).digest()


def hello(secret: str, names: Names, nonce: bytes | None = None) -> bytes:
    nonce = secrets.token_bytes(NONCE) if nonce is None else nonce
    return nonce + code(secret, "hello", names, nonce)


def answer(secret: str, names: Names, said: bytes, nonce: bytes | None = None) -> bytes:
    """What a listener says to the hello ``said``."""
    nonce = secrets.token_bytes(NONCE) if nonce is None else nonce
    return nonce + code(secret, "listener", names, said[:NONCE], nonce)


def proof(secret: str, names: Names, said: bytes, answered: bytes) -> bytes:
    """What ends the exchange of ``said`` and ``answered``."""
    return code(secret, "connector", names, said[:NONCE], answered[:NONCE])


def received(connection: socket.socket, count: int) -> bytes:
    """So many bytes, or fewer if the other side closes before."""
    data = b""
    while len(data) < count:
        try:
            piece = connection.recv(count - len(data))
        except ConnectionError:
            break
        if not piece:
            break
        data += piece
    return data


def prove(connection: socket.socket, secret: str, names: Names) -> bool:
    """Be the connector on a new connection; whether the listener has proven itself."""
    said = hello(secret, names)
    connection.sendall(said)
    answered = received(connection, ANSWER)
    if answered[NONCE:] != code(secret, "listener", names, said[:NONCE], answered[:NONCE]):
        return False
    connection.sendall(proof(secret, names, said, answered))
    return True
