"""What is tried at the sockets that are there only while a round forms: the rendezvous, gloo's ports, the giver of the
state. The attacker is on the very host of the members, so his address is one of theirs."""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress

from hvtrain.control import auth
from hvtrain.control.rendezvous import MAX_VALUE_BYTES
from hvtrain.engine.handover import wire
from tests.support.attack.listening import Listener
from tests.support.attack.target import Target, say, status

GREETING_SECONDS = 4.0
"""The giver greets when it serves, not when it listens."""

SILENT, CROWD = 8, 30
"""Connections to each port that stay open and say nothing: from a member's address, and from another."""

MOST_SAID = 256
"""Bytes that a stranger is told: nonces and proofs."""


class Peers:
    """Attacks each of these sockets as soon as it is seen, in a thread of its own; ``told`` has a line for each kind.

    ``proves``: whether the engine's connections do; ``compressed``: a bomb (zlib).
    """

    def __init__(self, target: Target, proves: bool, compressed: bytes):
        self._target, self._proves = target, proves
        self._compressed = compressed
        self.told: dict[str, list[str]] = {}
        self.failed: list[str] = []
        self._threads: list[threading.Thread] = []
        self._held: list[socket.socket] = []

    def meet(self, listener: Listener) -> None:
        """A socket has been seen."""
        if listener.kind != "tcp" or listener.port == self._target.port:
            return
        what = self._rendezvous if listener.pid == self._target.pid else self._worker
        if not self._proves and what == self._worker:
            return  # an older engine takes whoever comes first for the peer
        self._threads.append(threading.Thread(target=self._play, args=(what, listener.port), daemon=True))
        self._threads[-1].start()

    def close(self) -> None:
        for thread in self._threads:
            thread.join(10)
        for connection in self._held:
            connection.close()

    def _play(self, what, port: int) -> None:
        try:
            what(port)
        except (ConnectionError, TimeoutError):
            pass  # it has gone: a round forms in milliseconds
        except BaseException as error:  # noqa: BLE001 - for the thread that judges
            self.failed.append(f"{what.__name__} at {port}: {error!r}")

    def _tell(self, line: str, what: str) -> None:
        self.told.setdefault(line, []).append(what)

    # The rendezvous --------------------------------------------------------------------------------------
    def _rendezvous(self, port: int) -> None:
        target = self._target
        foreign = target.connect(port, source="127.0.0.66")
        with foreign, suppress(ConnectionResetError):
            foreign.settimeout(3)
            assert foreign.recv(1) == b""
        self._tell("the rendezvous, from another address", "shut before a byte was read")
        if not self._proves:
            return  # nor does it know the round's path
        before, found = target.memory(), []
        try:
            for path, body, more in (
                    ("global/0", b"x" * 136, ""), ("0" * 64 + "/global/0", target.bomb, ""),
                    ("global/9", b"x" * (MAX_VALUE_BYTES + 1), ""), ("global/9", self._compressed, "Content-Encoding: deflate\r\n"),
                    ("global/../../etc/passwd", b"", ""),
                    ("global/9", b"0\r\n\r\nDELETE /global/0 HTTP/1.1\r\n\r\n", "Transfer-Encoding: chunked\r\n")):
                for method in ("PUT", "GET"):
                    head = (f"{method} /{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
                            f"{more}\r\n")
                    answer = say(target.connect(port), head.encode() + body)
                    assert b"root:" not in answer and not answer.startswith(b"HTTP/1.1 2"), (path, answer[:200])
                    found.append(status(answer))
        finally:
            if found:
                counts = ", ".join(f"{found.count(kind)} x {kind}" for kind in sorted(set(found)))
                self._tell("the rendezvous, from a member's address without the round's path", counts)
        grown = target.memory() - before
        assert grown < 32 << 20 and not target.marker.exists(), grown

    # Workers ---------------------------------------------------------------------------------------------
    def _worker(self, port: int) -> None:
        """Gloo's port of one pair, or the giver of the state, who greets first. Both are asked before their peers are."""
        target = self._target
        silent = [target.connect(port) for _ in range(SILENT)]
        crowd = [target.connect(port, source="127.0.0.66") for _ in range(CROWD)]
        texts = (os.urandom(64), os.urandom(100_000), target.bomb, b"GET / HTTP/1.1\r\n\r\n", b"\0" * wire.PROOF_BYTES,
                 b"\xff" * 4096, auth.answer(wire.receiver_token(auth.new_token()), auth.challenge()).encode())
        loud = []
        for text in texts:
            loud.append(target.connect(port))
            loud[-1].setblocking(False)
            with suppress(OSError):
                loud[-1].send(text)
        self._held += [*silent, *crowd, *loud]
        heard = _heard(silent[-1], GREETING_SECONDS)
        most = max(len(_heard(each, 0.1)) for each in loud)
        assert most <= MOST_SAID, f"{most} bytes were said to a stranger"
        if heard.startswith(wire.MAGIC):
            self._tell("the giver of the state: silence, a crowd, garbage, a pickle bomb, a false proof",
                       f"a greeting of {wire.GREETING_BYTES} bytes each, then dropped; the member got the state")
        else:
            self._tell("gloo's ports: silence, a crowd, garbage, a pickle bomb, all before the peer comes",
                       f"told at most {max(most, len(heard))} bytes; none took the peer's place, and the round formed")


def _heard(connection: socket.socket, seconds: float) -> bytes:
    """What is said on a connection until it is shut, or for so long."""
    heard, deadline = b"", time.monotonic() + seconds
    with suppress(OSError):
        while (left := deadline - time.monotonic()) > 0:
            connection.settimeout(left)
            data = connection.recv(1 << 16)
            if not data:
                break
            heard += data
            if heard.startswith(wire.MAGIC):
                break
    return heard
