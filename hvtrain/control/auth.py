"""Proof that both ends of a connection belong to the job, without sending the job's token.

::

    server --nonce_s (fresh, 32 bytes)-------------------->       client
    server <--nonce_c, HMAC(token, client|nonce_s|nonce_c)------- client
    server --HMAC(token, server|nonce_s|nonce_c)---------->       client

Each nonce is used for one connection only, so a recorded answer is worth nothing later; and as the two proofs differ,
neither end can be had to make the other's. Whoever listens in the place of a coordinator that has gone is found out.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

TOKEN_BYTES = 32


def new_token() -> str:
    """A random token for one job, hex."""
    return secrets.token_hex(TOKEN_BYTES)


def challenge() -> str:
    """A nonce for one connection, hex."""
    return secrets.token_hex(TOKEN_BYTES)


def answer(token: str, nonce: str) -> str:
    """What a client that knows ``token`` answers to ``nonce``."""
    own = secrets.token_hex(TOKEN_BYTES)
    return f"{own}:{_mac(token, 'client', nonce, own)}"


def proves(token: str, nonce: str, text: str) -> bool:
    """Whether ``text`` is the answer to ``nonce`` of somebody who knows ``token``."""
    own, separator, mac = text.partition(":")
    if not separator or len(own) != 2 * TOKEN_BYTES:
        return False
    return hmac.compare_digest(mac.encode(), _mac(token, "client", nonce, own).encode())


def countersign(token: str, nonce: str, text: str) -> str:
    """What a server that knows ``token`` says to ``text``, a client's answer to its ``nonce``."""
    return _mac(token, "server", nonce, text.partition(":")[0])


def is_countersigned(token: str, nonce: str, text: str, proof: str) -> bool:
    """Whether ``proof`` comes from a server that knows ``token``; ``text`` was this client's answer to ``nonce``."""
    return hmac.compare_digest(proof.encode(), countersign(token, nonce, text).encode())


def _mac(token: str, role: str, nonce: str, own: str) -> str:
    return hmac.new(token.encode(), f"hvtrain/1|{role}|{nonce}|{own}".encode(), hashlib.sha256).hexdigest()
