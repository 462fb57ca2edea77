"""Proof that both ends of a connection belong to the job, without sending the job's token; and seals on all they say.

::

    server --nonce_s (fresh, 32 bytes)-------------------->               client
    server <--nonce_c, HMAC(token, client|nonce_s|nonce_c|channel)------- client
    server --HMAC(token, server|nonce_s|nonce_c|channel)---------->       client
       both: key = HMAC(token, session|nonce_s|nonce_c|channel)
    server <==HMAC(key, client|0|text) text, HMAC(key, client|1|text) text ...== client     and the same the other way

Each nonce is used for one connection only, so a recorded answer is worth nothing later; and as the two proofs differ,
neither end can be had to make the other's. Whoever listens in the place of a coordinator that has gone is found out.

``channel`` names the connection below. With TLS it is the SHA-256 of the certificate that each end sees (RFC 5929,
tls-server-end-point): a man in the middle shows another one, so no proof fits. Without, it is empty: he may hand the
proofs on and read along, but as the key is not his, he can neither add, change, drop, repeat nor reorder a message.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

TOKEN_BYTES = 32
SEAL_CHARS = 64
"""Characters that a sealed message is longer than the message."""


def new_token() -> str:
    """A random token for one job, hex."""
    return secrets.token_hex(TOKEN_BYTES)


def challenge() -> str:
    """A nonce for one connection, hex."""
    return secrets.token_hex(TOKEN_BYTES)


def answer(token: str, nonce: str, channel: str = "") -> str:
    """What a client that knows ``token`` answers to ``nonce``."""
    own = secrets.token_hex(TOKEN_BYTES)
    return f"{own}:{_mac(token, 'client', nonce, own, channel)}"


def proves(token: str, nonce: str, text: str, channel: str = "") -> bool:
    """Whether ``text`` is the answer to ``nonce`` of somebody who knows ``token``."""
    own, separator, mac = text.partition(":")
    if not separator or len(own) != 2 * TOKEN_BYTES:
        return False
    return hmac.compare_digest(mac.encode(), _mac(token, "client", nonce, own, channel).encode())


def countersign(token: str, nonce: str, text: str, channel: str = "") -> str:
    """What a server that knows ``token`` says to ``text``, a client's answer to its ``nonce``."""
    return _mac(token, "server", nonce, text.partition(":")[0], channel)


def is_countersigned(token: str, nonce: str, text: str, proof: str, channel: str = "") -> bool:
    """Whether ``proof`` comes from a server that knows ``token``; ``text`` was this client's answer to ``nonce``."""
    return hmac.compare_digest(proof.encode(), countersign(token, nonce, text, channel).encode())


def round_secret(token: str, nonce: str) -> str:
    """The secret of the round whose seats carry ``nonce``: it crosses no network, so who listens does not have it."""
    return _mac(token, "round", nonce, "", "") if nonce else ""


class Seals:
    """The seals of one proven connection, as one end makes and checks them.

    Args:
        text: the client's answer to ``nonce``.
        client: whether this is the client's end.
    """

    def __init__(self, token: str, nonce: str, text: str, channel: str = "", *, client: bool):
        self._key = _mac(token, "session", nonce, text.partition(":")[0], channel).encode()
        self._own, self._other = ("client", "server") if client else ("server", "client")
        self._sent = self._heard = 0

    def seal(self, text: str) -> str:
        """``text`` with its seal before it; sealed texts must be sent in the order in which they were sealed."""
        sealed = self._mac(self._own, self._sent, text) + text
        self._sent += 1
        return sealed

    def open(self, sealed: str) -> str | None:
        """The next text of the other end; None if it is not that."""
        text = sealed[SEAL_CHARS:]
        if not hmac.compare_digest(sealed[:SEAL_CHARS].encode(), self._mac(self._other, self._heard, text).encode()):
            return None
        self._heard += 1
        return text

    def _mac(self, role: str, number: int, text: str) -> str:
        return hmac.digest(self._key, f"{role}|{number}|{text}".encode(), "sha256").hex()


def _mac(token: str, role: str, nonce: str, own: str, channel: str) -> str:
    # Lengths, because a stranger chooses some of the parts: no two lists of parts may give the same text.
    parts = "|".join(f"{len(part)}:{part}" for part in (role, nonce, own, channel))
    return hmac.new(token.encode(), f"hvtrain/2|{parts}".encode(), hashlib.sha256).hexdigest()
