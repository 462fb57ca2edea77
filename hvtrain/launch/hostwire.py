"""The lines that a launcher and its process on a host exchange over ssh.

::

    launcher  --hello, reach, listen, agent, watch, ping, kill-->  host        standard input, a JSON object each
    launcher  <--report, reached, listening, started, alive, ended host        standard output, marked
    launcher  <--anything else------------------------------------ host        what programs there print: for people

Shells greet, and libraries print, on the same standard output. So lines of ours begin with a mark that contains the
launcher's nonce; all others are what they are.
"""

from __future__ import annotations

import json
from typing import Any

MOST_BYTES = 8 << 20
"""No line of ours is longer; a longer one is cut to pieces, and shown as anything else."""


def request(message: dict[str, Any]) -> bytes:
    """A line to a host."""
    return json.dumps(message).encode() + b"\n"


def reply(nonce: str, message: dict[str, Any]) -> bytes:
    """A line from a host. It begins anew whatever was printed before."""
    return b"\n" + _mark(nonce) + json.dumps(message).encode() + b"\n"


def read_reply(nonce: str, line: bytes) -> dict[str, Any] | None:
    """The message in a line from a host; None if it is none of ours."""
    if not line.startswith(_mark(nonce)):
        return None
    try:
        message = json.loads(line[len(_mark(nonce)):])
    except ValueError:
        return None
    return message if isinstance(message, dict) and isinstance(message.get("op"), str) else None


class Lines:
    """Cuts a stream of bytes into lines."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that are complete now, without their ends."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MOST_BYTES:
            lines.append(self._rest)
            self._rest = b""
        return [line.rstrip(b"\r") for line in lines]


def _mark(nonce: str) -> bytes:
    return f"#hvtrain {nonce} ".encode()
