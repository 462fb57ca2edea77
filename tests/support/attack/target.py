"""What an attacker knows of a job, and how he knocks at its sockets."""

from __future__ import annotations

import pickle
import socket
import ssl
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hvtrain.control import tls

PATIENCE = 1.5
"""Seconds that a connection is given to be answered or shut."""

SHUT = "shut or left without an answer"


@dataclass(frozen=True)
class Target:
    """A job in ``run_dir`` (of which he can read what everybody can), the coordinator's place, and its launcher's pid.

    ``client_token`` is what a person's commands prove themselves with; it is used where an insider attacks. ``marker``:
    a file that a pickle bomb makes if anybody loads it.
    """

    run_dir: Path
    host: str
    port: int
    tls: bool
    pid: int
    client_token: str
    marker: Path

    @property
    def bomb(self) -> bytes:
        """A pickle that writes ``marker`` when it is loaded."""
        return pickle.dumps(Bomb(str(self.marker)))

    def connect(self, port: int | None = None, *, source: str = "", raw: bool = False) -> socket.socket:
        """A connection to the door, or to another port; with TLS where that is spoken, unless ``raw``."""
        plain = socket.create_connection((self.host, port or self.port), PATIENCE, (source, 0) if source else None)
        if raw or not self.tls or port not in (None, self.port):
            return plain
        return tls.client_context().wrap_socket(plain)

    def memory(self) -> int:
        """Bytes that the coordinator's process holds."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024


class Bomb:
    """Unpickling it leaves a trace."""

    def __init__(self, marker: str):
        self.marker = marker

    def __reduce__(self):
        return exec, (f"open({self.marker!r}, 'w').write('exploded')",)


def say(connection: socket.socket, *texts: bytes, shut: bool = True) -> bytes:
    """Send ``texts`` and return all that is answered until the other end shuts the connection, or for a while.

    Not ``shut``: the first answer is enough.
    """
    heard = b""
    with connection:
        with suppress(OSError, ssl.SSLError):
            for text in texts:
                connection.sendall(text)
        with suppress(OSError, ssl.SSLError):
            while data := connection.recv(1 << 16):
                heard += data
                if not shut:
                    break
    return heard


def shut_within(connection: socket.socket, seconds: float) -> float:
    """After how many seconds the other end shuts the connection. Raises AssertionError if it does not in time."""
    began = time.monotonic()
    connection.settimeout(seconds)
    try:
        while connection.recv(1 << 16):
            pass
    except TimeoutError:
        raise AssertionError(f"the connection is still there after {seconds:g} s") from None
    except OSError:
        pass
    return time.monotonic() - began


def status(answer: bytes) -> str:
    """An HTTP answer's number, or that there was none."""
    return answer.split(b" ")[1].decode() if answer.startswith(b"HTTP/") else SHUT
