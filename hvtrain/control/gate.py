"""A listening socket that strangers cannot wear out: they are few, may say little, and have little time.

::

    accept --admits(address)? no--> closed at once, before a byte is read
       | yes
    stranger: so many seconds to prove itself, so many bytes until then (TLS's handshake is within the time)
       |      too many of them: the oldest of the address that has the most goes, so that a crowd keeps out itself only
    let_in(transport): the gate bounds it no longer
"""

from __future__ import annotations

import asyncio
import resource
import socket
import ssl
from typing import Any, Callable

from hvtrain.control.refusals import Refusals

FULL_SECONDS = 0.05
"""Pause when descriptors have run out and no stranger is there to give one back."""

MOST_STRANGERS = 2048
_BACKLOG = 1024


class Visitor(asyncio.Protocol):
    """One connection: hands everything on to the protocol behind the gate, and counts while it is a stranger's."""

    def __init__(self, gate: Gate, address: str):
        self.address, self.transport = address, None  # type: str, Any
        self.task: asyncio.Task | None = None  # until there is a transport
        self.timer: asyncio.TimerHandle | None = None
        self._gate, self._heard, self._behind = gate, 0, None  # type: Gate, int, Any

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._gate.arrived(self)
        self._behind = self._gate.make()
        self._behind.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self.timer is not None:  # a stranger
            self._heard += len(data)
            if self._heard > self._gate.most_bytes:
                return self._gate.refuse(self, "it says too much for a stranger")
        self._behind.data_received(data)

    def eof_received(self) -> bool | None:
        return self._behind.eof_received()

    def pause_writing(self) -> None:
        self._behind.pause_writing()

    def resume_writing(self) -> None:
        self._behind.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        self._gate.gone(self)
        self._behind.connection_lost(error)


class Gate:
    """Listens, and makes a protocol for each connection that it lets through. Use within one event loop.

    Args:
        make: called for the protocol behind the gate.
        seconds, most_bytes: what a stranger may take.
        admits: whether anybody at that address may knock.
        tls: the server's context.
    """

    def __init__(self, make: Callable[[], asyncio.BaseProtocol], *, seconds: float, most_bytes: int, refusals: Refusals,
                 admits: Callable[[str], bool] = lambda address: True, tls: ssl.SSLContext | None = None):
        self.make, self.most_bytes = make, most_bytes
        self._seconds, self._refusals, self._admits, self._tls = seconds, refusals, admits, tls
        self._room = min(MOST_STRANGERS, max(16, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2))
        self._strangers: dict[str, dict[Visitor, None]] = {}  # by address, the oldest first
        self._visitors: dict[Any, Visitor] = {}  # by transport
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task | None = None

    async def open(self, host: str, port: int = 0) -> int:
        """Listen on one address; returns the port. Raises OSError if that is impossible."""
        family, kind, number, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        self._listener = socket.socket(family, kind, number)
        try:
            self._listener.setblocking(False)
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                self._listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            self._listener.bind(place)
            self._listener.listen(_BACKLOG)
        except OSError:
            self._listener.close()
            raise
        self._accepting = asyncio.create_task(self._accept())
        return self._listener.getsockname()[1]

    def let_in(self, transport: Any) -> None:
        """The stranger of this connection has proven what it had to."""
        visitor = self._visitors.get(transport)
        if visitor is not None:
            self._no_stranger(visitor)

    def close(self) -> None:
        """Listen no more, and send strangers away. Who was let in stays."""
        if self._accepting is not None:
            self._accepting.cancel()
        if self._listener is not None:
            self._listener.close()
        for visitor in self._all_strangers():
            self._cut(visitor)

    # For visitors ----------------------------------------------------------------------------------------
    def arrived(self, visitor: Visitor) -> None:
        self._visitors[visitor.transport] = visitor

    def gone(self, visitor: Visitor) -> None:
        self._no_stranger(visitor)
        self._visitors.pop(visitor.transport, None)

    def refuse(self, visitor: Visitor, why: str) -> None:
        """Show a stranger out."""
        self._refusals.log(visitor.address, why)
        self._cut(visitor)

    # Accepting -------------------------------------------------------------------------------------------
    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        assert self._listener is not None
        while True:
            try:
                sock, end = await loop.sock_accept(self._listener)
            except OSError:  # out of descriptors
                if not self._make_room("descriptors ran out"):
                    await asyncio.sleep(FULL_SECONDS)
                continue
            if self._admits(end[0]):
                if sum(map(len, self._strangers.values())) >= self._room:
                    self._make_room("too many others wait to prove themselves")
                self._receive(sock, end[0])
            else:
                sock.close()
                self._refusals.log(end[0], "nobody at that address belongs to this round")
            await asyncio.sleep(0)  # many that knock must not keep the loop from its work

    def _receive(self, sock: socket.socket, address: str) -> None:
        loop = asyncio.get_running_loop()
        sock.setblocking(False)
        visitor = Visitor(self, address)
        visitor.timer = loop.call_later(self._seconds, self.refuse, visitor, "no proof in time")
        self._strangers.setdefault(address, {})[visitor] = None
        visitor.task = asyncio.create_task(self._connect(visitor, sock))
        visitor.task.add_done_callback(lambda _: visitor.transport is None and sock.close())

    async def _connect(self, visitor: Visitor, sock: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: visitor, sock, ssl=self._tls, ssl_handshake_timeout=self._seconds if self._tls else None)
        except OSError as error:  # TLS's own errors and time-outs among them
            if visitor.timer is not None:
                self.refuse(visitor, f"no connection: {error or type(error).__name__}")

    def _make_room(self, why: str) -> bool:
        """Show out the oldest stranger of the address that has the most; False if there is none."""
        crowd = max(self._strangers.values(), key=len, default=None)
        if crowd is not None:
            self.refuse(next(iter(crowd)), why)
        return crowd is not None

    def _cut(self, visitor: Visitor) -> None:
        self._no_stranger(visitor)
        if visitor.transport is not None:
            visitor.transport.abort()
        elif visitor.task is not None:
            visitor.task.cancel()

    def _no_stranger(self, visitor: Visitor) -> None:
        if visitor.timer is not None:
            visitor.timer.cancel()
            visitor.timer = None
            crowd = self._strangers[visitor.address]
            crowd.pop(visitor, None)
            if not crowd:
                del self._strangers[visitor.address]

    def _all_strangers(self) -> list[Visitor]:
        return [visitor for crowd in self._strangers.values() for visitor in crowd]
