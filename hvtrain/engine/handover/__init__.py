"""Sending a state from one member of a round straight to those that lack it, over TCP.

::

    giver (Offer)                                              receiver (Fetch)
      | -- "hvtrain-state/1\\n" nonce, 64 hex ----------------> |
      | <------------------ answer to that nonce, 129 bytes --- |     knows the token; carries a nonce of its own
      | -- answer to the receiver's nonce, 129 bytes ---------> |     so does the giver
      | -- 8 bytes: length of the JSON -- JSON ---------------> |     outline, state
      | -- bytes of all tensors in the outline's order -------> |
      | <------------------------------------------- 1 byte --- |     all of it is here

Tensors go from the giver's own memory into the receiver's final buffers; nobody joins them. Whoever waits is bounded
by a time without progress and can be broken out by another thread. A peer that is gone gives RoundBroken, bytes
that cannot come from this version of hvtrain give ProtocolError.
"""

from hvtrain.engine.handover.fetching import Fetch, fetch
from hvtrain.engine.handover.offer import Offer

__all__ = ["Fetch", "Offer", "fetch"]
