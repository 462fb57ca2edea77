"""The coordinator's door: one WebSocket per agent, worker or person, opened by proof, guarded by types and limits."""

from __future__ import annotations

import asyncio
import logging
import resource
import time
from contextlib import suppress
from typing import Any, Protocol

from aiohttp import WSMsgType, web

from hvtrain.control import auth, messages
from hvtrain.control.line import Line, Peer
from hvtrain.errors import ProtocolError

__all__ = ["Door", "Host", "Peer", "WrongJob"]
log = logging.getLogger(__name__)

AUTH_SECONDS = 10.0
"""A connection that has not proven itself by then is closed."""

GOODBYE_SECONDS = 1.0
"""How long a peer may take to answer that a connection is closed."""

CLIENT_SECONDS = 30.0
"""A person's command that says nothing for so long is shown out."""

MAX_CLIENTS = 16
"""People's commands at the door at the same time."""

LOGGED_PER_SECOND = 10
"""Refusals that are logged one by one; of more only the number is."""


class Host(Protocol):
    """Who lives behind the door."""

    def admit(self, hello: messages.Message, is_client: bool) -> Peer:
        """Whom this first message belongs to. Raises ProtocolError, or WrongJob, for nobody."""

    def hear(self, peer: Peer, message: messages.Message) -> messages.Message | None:
        """Take a message; what is returned is sent back. Raises ProtocolError for what the peer may not say."""

    def gone(self, peer: Peer) -> None:
        """The connection of ``peer`` is closed."""


class WrongJob(ProtocolError):
    """An agent belongs to another job; it is told so before the door is shut."""


class Door:
    """Listens on one address and knows everybody's connection by name.

    Strangers cost a bounded number of descriptors: when they are too many, the oldest is shown out.

    Args:
        token: proves membership of the job.
        client_token: proves the right to ask and to scale, nothing else.
    """

    def __init__(self, host: Host, *, address: str, token: str, client_token: str):
        self._host, self._address, self._token, self._client_token = host, address, token, client_token
        self._lines: dict[str, Line] = {}
        self._proven: set[Any] = set()  # transports
        self._room = max(16, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        self._refusals = Refusals()
        self._runner: web.AppRunner | None = None
        self._listening: asyncio.AbstractServer | None = None
        self._sweeping: asyncio.Task | None = None

    async def open(self) -> int:
        """Listen; returns the port. Raises OSError if that is impossible."""
        app = web.Application()
        app.router.add_get("/ws", self._connection)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        self._listening = await loop.create_server(self._accept, self._address, 0, backlog=1024)
        self._sweeping = asyncio.create_task(self._sweep())
        return self._listening.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Let nobody in any more, let last words leave, and end all connections."""
        if self._listening is not None:
            self._listening.close()
        if self._sweeping is not None:
            self._sweeping.cancel()
        await asyncio.gather(*(line.flush() for line in self._lines.values()))
        if self._runner is not None:
            await self._runner.cleanup()

    def knows(self, name: str) -> bool:
        """Whether somebody of that name is connected."""
        return name in self._lines

    async def send(self, name: str, message: messages.Message) -> None:
        """Send to whoever has that name, without waiting for him; to nobody, if there is no such connection."""
        line = self._lines.get(name)
        if line is not None:
            line.say(message)

    async def drop(self, name: str) -> None:
        """Cut somebody's connection."""
        line = self._lines.pop(name, None)
        if line is not None:
            line.cut()

    # Strangers -------------------------------------------------------------------------------------------
    def _accept(self) -> asyncio.BaseProtocol:
        assert self._runner is not None and self._runner.server is not None
        if len(self._runner.server.connections) - len(self._proven) >= self._room:
            for stranger in self._strangers()[:1]:
                self._show_out(stranger, "too many others wait to prove themselves")
        return self._runner.server()

    def _strangers(self) -> list[Any]:
        """Connections that have not proven themselves, the oldest first."""
        assert self._runner is not None and self._runner.server is not None
        return [connection for connection in self._runner.server.connections
                if connection.transport is not None and connection.transport not in self._proven
                and not connection.transport.is_closing()]

    def _show_out(self, stranger: Any, why: str) -> None:
        end = stranger.transport.get_extra_info("peername")
        self._refusals.log(end[0] if end else "somewhere", why)
        stranger.transport.abort()

    async def _sweep(self) -> None:
        """Show out who does not even ask for a WebSocket."""
        since: dict[Any, float] = {}
        while True:
            await asyncio.sleep(AUTH_SECONDS / 4)
            now = time.monotonic()
            since = {stranger: since.get(stranger, now) for stranger in self._strangers()}
            for stranger, first_seen in since.items():
                if now - first_seen > AUTH_SECONDS:
                    self._show_out(stranger, "no proof in time")

    # Connections -----------------------------------------------------------------------------------------
    async def _connection(self, request: web.Request) -> web.WebSocketResponse:
        # No compression: our messages are small, and a stranger's could be a bomb.
        socket = web.WebSocketResponse(max_msg_size=messages.MAX_BYTES, timeout=GOODBYE_SECONDS, compress=False)
        await socket.prepare(request)
        transport, line = request.transport, None
        try:
            hello, is_client = await asyncio.wait_for(self._identify(socket), AUTH_SECONDS)
            self._proven.add(transport)
            line = self._let_in(hello, is_client, socket, transport)
            await self._serve(line, socket)
        except WrongJob as error:
            self._refusals.log(request.remote, str(error))
            with suppress(ConnectionError):
                await socket.send_str(messages.encode(messages.End(exit_code=2, reason=str(error))))
        except (ProtocolError, asyncio.TimeoutError) as error:
            self._refusals.log(request.remote, str(error) or ("no word in time" if line else "no proof in time"))
        except ConnectionError:
            pass  # it has gone while it was being answered
        finally:
            self._proven.discard(transport)
            if line is not None and self._lines.get(line.peer.name) is line:
                del self._lines[line.peer.name]
                self._host.gone(line.peer)
            await (socket if line is None else line).close()
        return socket

    async def _identify(self, socket: web.WebSocketResponse) -> tuple[messages.Message, bool]:
        """The first message of somebody who knows one of the tokens, and whether it is the clients'."""
        nonce = auth.challenge()
        await socket.send_str(nonce)
        proof = await _text(socket) or ""
        is_client = auth.proves(self._client_token, nonce, proof)
        if not is_client and not auth.proves(self._token, nonce, proof):
            raise ProtocolError("it does not know the job's token")
        await socket.send_str(auth.countersign(self._client_token if is_client else self._token, nonce, proof))
        return messages.decode_inbound(await _text(socket) or ""), is_client

    def _let_in(self, hello: messages.Message, is_client: bool, socket: web.WebSocketResponse, transport: Any) -> Line:
        if isinstance(hello, messages.ClientHello) is not is_client:
            raise ProtocolError(f"its token does not fit a {type(hello).__name__}")
        if is_client and sum(line.peer.kind == "client" for line in self._lines.values()) >= MAX_CLIENTS:
            raise ProtocolError(f"{MAX_CLIENTS} people's commands are connected already")
        line = Line(self._host.admit(hello, is_client), socket, transport)
        former, self._lines[line.peer.name] = self._lines.get(line.peer.name), line
        if former is not None:  # it has lost its connection before we noticed, and is back
            former.cut()
        return line

    async def _serve(self, line: Line, socket: web.WebSocketResponse) -> None:
        patience = CLIENT_SECONDS if line.peer.kind == "client" else None
        while (text := await _text(socket, patience)) is not None:
            reply = self._host.hear(line.peer, messages.decode_inbound(text))
            if reply is not None:
                line.say(reply)
            await line.heard(len(text))


async def _text(socket: web.WebSocketResponse, patience: float | None = None) -> str | None:
    """What the peer says next, within ``patience`` seconds; None when it has gone."""
    raw = await socket.receive(timeout=patience)
    if raw.type is WSMsgType.TEXT:
        return raw.data
    if raw.type in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED):
        return None
    raise ProtocolError(f"a {raw.type.name} frame came where text was expected ({str(raw.data)[:100]})")


class Refusals:
    """Logs who was refused, not more often than a person can read: strangers must not fill a disk."""

    def __init__(self):
        self._since, self._count = 0.0, 0

    def log(self, remote: str | None, why: str) -> None:
        """``remote``: its address."""
        now = time.monotonic()
        if now - self._since >= 1.0:
            if self._count > LOGGED_PER_SECOND:
                log.warning("%d more connections were refused", self._count - LOGGED_PER_SECOND)
            self._since, self._count = now, 0
        self._count += 1
        if self._count <= LOGGED_PER_SECOND:
            log.warning("refused a connection from %s: %s", remote, why)
