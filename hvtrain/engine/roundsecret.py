"""The secret of a round: what its members prove their membership by, to each other and to the rendezvous.

It is made of the job's token and of a nonce that the coordinator draws for each round and hands out with the seats,
behind the door's own proof (:func:`hvtrain.control.auth.round_secret`): so it crosses no network itself. The engine
reads it from the environment in ``init()`` (edits "proof" and "secret-path"); an engine without them takes no notice
of it.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import secrets

from hvtrain.engine.info import installed_record

VARIABLE = "HVTRAIN_ROUND_SECRET"
"""Set before ``init()``, gone after it: what a worker starts is not to inherit it."""


def draw() -> str:
    """A new nonce: 256 bits, in 64 letters."""
    return secrets.token_hex(32)


def path(secret: str) -> str:
    """The first part of the rendezvous' paths in the round of ``secret`` (rendezvousPath in native/hvtrain_proof.h).

    It crosses the network as it is, so it is not the secret itself.
    """
    return hmac.new(secret.encode(), b"hvtrain rendezvous 1", hashlib.sha256).hexdigest()


@functools.cache
def unknown_to_engine() -> bool:
    """Whether the engine that is installed here is one of ours that takes no notice of the secret yet."""
    record = installed_record()
    return record is not None and "secret-path" not in record.get("edits", ())
