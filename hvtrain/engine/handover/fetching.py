"""The receiving side of a handover."""

from __future__ import annotations

import mmap
import select
import socket
import time
from typing import Any

from hvtrain.checkpoint.blob import Blob
from hvtrain.control import auth
from hvtrain.engine.breaker import Breaker
from hvtrain.engine.handover import wire
from hvtrain.errors import ProtocolError, RoundBroken

_PIECE = 1 << 20  # JSON is taken in such pieces: memory for it only as it comes


class Fetch:
    """One receipt of a state from the giver at ``address``, an :attr:`Offer.address`.

    ``timeout`` bounds, in seconds, every period in which not a byte comes or goes. ``run`` in one thread, ``cut`` from
    any other. ``state`` is the JSON that came with the tensors, after ``run``.
    """

    def __init__(self, address: tuple[str, int], token: str, *, timeout: float):
        self._address, self._token, self._timeout = address, token, timeout
        self._breaker = Breaker()
        self._sock: socket.socket | None = None
        self.received = 0  # bytes so far; for other threads to look at
        self.state: dict[str, Any] = {}

    def run(self) -> dict[str, dict[str, Blob]]:
        """The giver's groups of tensors, in memory of their own, writable. Once per object.

        Raises:
            RoundBroken: the giver is gone, silent for too long, or does not know the token; or :meth:`cut`.
            ProtocolError: what came cannot be from this version of hvtrain.
        """
        try:
            self._breaker.check()
            return self._receive()
        except OSError as error:
            raise RoundBroken(f"the member that gives the state, at {self._place}, is gone: {error}") from None
        finally:
            if self._sock is not None:
                self._sock.close()
            self._breaker.close()

    def cut(self) -> None:
        """Break :meth:`run` out with RoundBroken, now or as soon as it is called."""
        self._breaker.cut()

    def _receive(self) -> dict[str, dict[str, Blob]]:
        self._connect()
        self._prove()
        length = int.from_bytes(self._take(wire.LENGTH_BYTES), "little")
        if length > wire.MAX_OUTLINE:
            raise ProtocolError(f"the outline of a state has at most {wire.MAX_OUTLINE} bytes; {length} were announced")
        text = bytearray()
        while len(text) < length:
            text += self._take(min(_PIECE, length - len(text)))
        outline, state = wire.decode(text)
        groups = outline.blobs(_block(outline.nbytes))
        self._fill(wire.Views(blob.data for blobs in groups.values() for blob in blobs.values()))
        self._send(wire.RECEIVED)
        self.state = state
        return groups

    def _connect(self) -> None:
        host, port = self._address
        try:
            if not 0 < port < 1 << 16:
                raise OverflowError  # the C library takes the lower 16 bits of others
            # Numeric only: looking up a name could neither be bounded nor broken out of.
            family, kind, number, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM,
                                                                flags=socket.AI_NUMERICHOST)[0]
        except (socket.gaierror, UnicodeError, OverflowError):
            raise ProtocolError("a giver's address must be a numeric IP address and a port; got "
                                f"{self._address!r}") from None
        self._sock = socket.socket(family, kind, number)
        self._sock.setblocking(False)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self._sock.connect(place)
        except BlockingIOError:
            self._wait(select.POLLOUT, "connecting")
        error = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, "cannot connect")

    def _prove(self) -> None:
        greeting = self._take(wire.GREETING_BYTES)
        if not greeting.startswith(wire.MAGIC):
            raise ProtocolError(f"a giver of state must begin with {wire.MAGIC!r}; got {bytes(greeting[:16])!r}")
        proof = auth.answer(wire.receiver_token(self._token), wire.ascii_text(greeting[len(wire.MAGIC):]))
        self._send(proof.encode())
        own = proof.partition(":")[0]
        if not auth.proves(wire.giver_token(self._token), own, wire.ascii_text(self._take(wire.PROOF_BYTES))):
            raise ProtocolError(f"what answers at {self._place} does not know the job's token; nothing was taken from "
                                "it")

    def _take(self, count: int) -> bytearray:
        data = bytearray(count)
        self._fill(wire.Views([memoryview(data)]))
        return data

    def _fill(self, views: wire.Views) -> None:
        assert self._sock is not None
        while views:
            self._breaker.check()
            try:
                count = self._sock.recvmsg_into(views.window())[0]
            except BlockingIOError:
                self._wait(select.POLLIN, "receiving")
                continue
            if count == 0:
                raise RoundBroken(f"the member that gives the state, at {self._place}, has closed the connection")
            views.advance(count)
            self.received += count

    def _send(self, data: bytes) -> None:
        assert self._sock is not None
        while data:
            try:
                data = data[self._sock.send(data):]
            except BlockingIOError:
                self._wait(select.POLLOUT, "sending")

    def _wait(self, event: int, what: str) -> None:
        assert self._sock is not None
        self._breaker.wait(self._sock, event, time.monotonic() + self._timeout,
                           f"{what}, at the member that gives the state, {self._place}, for {self._timeout:g} s")

    @property
    def _place(self) -> str:
        return f"{self._address[0]}:{self._address[1]}"


def fetch(address: tuple[str, int], token: str, *, timeout: float) -> dict[str, dict[str, Blob]]:
    """:meth:`Fetch.run` where nobody has to break out of it."""
    return Fetch(address, token, timeout=timeout).run()


def _block(size: int) -> memoryview:
    """Memory for ``size`` bytes; it goes when the last view of it does. Untouched so far, unlike a new bytearray."""
    if size == 0:
        return memoryview(b"")
    try:
        block = mmap.mmap(-1, size)
    except (OSError, OverflowError, ValueError) as error:
        raise ProtocolError(f"there is no memory for the {size} bytes of state that were announced: {error}") from None
    try:
        block.madvise(mmap.MADV_HUGEPAGE)  # 512 times fewer page faults
    except (OSError, AttributeError):
        pass
    return memoryview(block)
