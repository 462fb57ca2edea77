"""What giver and receiver of a state agree on; the picture is in the package's ``__init__``."""

from __future__ import annotations

import json
from collections import deque
from itertools import islice
from typing import Any, Iterable, Mapping

from hvtrain.checkpoint.blob import Blob
from hvtrain.checkpoint.outline import Outline
from hvtrain.checkpoint.snapshot import plain
from hvtrain.control import auth
from hvtrain.errors import ProtocolError

MAGIC = b"hvtrain-state/1\n"
GREETING_BYTES = len(MAGIC) + 2 * auth.TOKEN_BYTES
PROOF_BYTES = 4 * auth.TOKEN_BYTES + 1
LENGTH_BYTES = 8
RECEIVED = b"\x06"
MAX_OUTLINE = 64 << 20
"""Bytes of JSON that a receiver takes; an outline has about 60 per tensor."""
_AT_ONCE = 64  # buffers per system call; the kernel takes up to 1024
_BYTES_AT_ONCE = 8 << 20  # while both sides run, one call could go on for the whole state, deaf to a cut


class Views:
    """Buffers that are sent or filled in order, several with one system call. Knows how far it is."""

    def __init__(self, views: Iterable[memoryview | bytes]):
        self._views = deque(memoryview(view) for view in views if len(view))

    def __bool__(self) -> bool:
        return bool(self._views)

    def window(self) -> list[memoryview]:
        """The next buffers, for one system call."""
        found: list[memoryview] = []
        room = _BYTES_AT_ONCE
        for view in islice(self._views, _AT_ONCE):
            found.append(view[:room])
            room -= len(found[-1])
            if not room:
                break
        return found

    def advance(self, count: int) -> None:
        """``count`` bytes of them are done."""
        while count:
            first = self._views.popleft()
            if count < len(first):
                self._views.appendleft(first[count:])
                return
            count -= len(first)


def encode(groups: Mapping[str, Mapping[str, Blob]], state: Mapping[str, Any]) -> list[memoryview | bytes]:
    """What is sent after the proofs: length, JSON, tensors.

    Raises:
        ProtocolError: the JSON is too long.
        UserCodeError: JSON cannot hold ``state``.
    """
    text = json.dumps({"outline": Outline.of(groups).to_json(), "state": plain(state)}, separators=(",", ":")).encode()
    if len(text) > MAX_OUTLINE:
        raise ProtocolError(f"names and shapes of the state take {len(text)} bytes; at most {MAX_OUTLINE} are sent")
    return [len(text).to_bytes(LENGTH_BYTES, "little"), text,
            *(blob.data for blobs in groups.values() for blob in blobs.values())]


def decode(text: bytes | bytearray) -> tuple[Outline, dict[str, Any]]:
    """The JSON of :func:`encode`. Raises ProtocolError for anything else."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"the outline of a state is not JSON: {error}") from None
    if not isinstance(content, dict) or set(content) != {"outline", "state"} or not isinstance(content["state"], dict):
        raise ProtocolError("the outline of a state must be a JSON object with outline and state")
    return Outline.from_json(content["outline"]), content["state"]


def giver_token(token: str) -> str:
    """What the giver proves to know. Not the same as the receiver: a false giver could have another one answer."""
    return f"{token}|state|giver"


def receiver_token(token: str) -> str:
    """What the receiver proves to know. Not the token itself: a false giver could hand it the coordinator's challenge
    and use its answer there."""
    return f"{token}|state|receiver"


def ascii_text(data: bytes | bytearray) -> str:
    """Text that a stranger may have sent; what is not ASCII becomes something that proves nothing."""
    return data.decode("ascii", "replace")
