"""Proof that a connecting process belongs to the job, without sending the job's token.

::

    server --nonce_s (fresh, 32 bytes)-->            client
    server <--nonce_c, HMAC(token, nonce_s|nonce_c)-- client

The server's nonce is used for one connection only, so a recorded answer is worth nothing later.
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
    return f"{own}:{_mac(token, nonce, own)}"


def proves(token: str, nonce: str, text: str) -> bool:
    """Whether ``text`` is the answer to ``nonce`` of somebody who knows ``token``."""
    own, separator, mac = text.partition(":")
    if not separator or len(own) != 2 * TOKEN_BYTES:
        return False
    return hmac.compare_digest(mac.encode(), _mac(token, nonce, own).encode())


def _mac(token: str, nonce: str, own: str) -> str:
    return hmac.new(token.encode(), f"hvtrain/1|{nonce}|{own}".encode(), hashlib.sha256).hexdigest()
