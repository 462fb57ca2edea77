"""The coordinator's door: one WebSocket per agent, worker or person, opened by proof, guarded by types and limits."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, Protocol

from aiohttp import WSMsgType, web

from hvtrain.control import auth, messages, silence, tls as certificates
from hvtrain.control.auth import Seals
from hvtrain.control.gate import Gate
from hvtrain.control.line import Line, Peer
from hvtrain.control.refusals import Refusals
from hvtrain.errors import ProtocolError

__all__ = ["Door", "Host", "Peer", "WrongJob"]

AUTH_SECONDS = 10.0
"""A connection that has not proven itself by then is closed."""

GOODBYE_SECONDS = 1.0
"""How long a peer may take to answer that a connection is closed."""

CLIENT_SECONDS = 30.0
"""A person's command that says nothing for so long is shown out."""

MAX_CLIENTS = 16
"""People's commands at the door at the same time."""

SILENT_SECONDS = 60.0
"""A network that confirms nothing for so long ends a peer's connection. Its loss is noticed by its heartbeat, long before."""

STRANGER_BYTES = 16 << 10
"""A request for a WebSocket and a proof take less than 1 KB."""


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

    Strangers are kept within bounds by the :class:`Gate` before it.

    Args:
        token: proves membership of the job.
        client_token: proves the right to ask and to scale, nothing else.
        port: to listen at; 0 for any that is free.
        tls: speak TLS, and nothing else.
    """

    def __init__(self, host: Host, *, address: str, token: str, client_token: str, port: int = 0, tls: bool = False):
        self._host, self._address, self._token, self._client_token = host, address, token, client_token
        self._port, self._tls, self._channel = port, tls, ""
        self._lines: dict[str, Line] = {}
        self._refusals = Refusals()
        self._runner: web.AppRunner | None = None
        self._gate: Gate | None = None

    async def open(self) -> int:
        """Listen; returns the port. Raises OSError, or EnvironmentNotReady, if that is impossible."""
        context = None
        if self._tls:
            context, self._channel = certificates.server_context()
        app = web.Application()
        app.router.add_get("/ws", self._connection)
        # No compression, neither of bodies nor of messages: ours are small, and a stranger's could be a bomb.
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, auto_decompress=False,
                                   logger=self._refusals.logger("hvtrain.control.door"))
        await self._runner.setup()
        assert self._runner.server is not None
        self._gate = Gate(self._runner.server, seconds=AUTH_SECONDS, most_bytes=STRANGER_BYTES,
                          refusals=self._refusals, tls=context)
        return await self._gate.open(self._address, self._port)

    async def close(self) -> None:
        """Let nobody in any more, let last words leave, and end all connections."""
        if self._gate is not None:
            self._gate.close()
        await asyncio.gather(*(line.flush() for line in self._lines.values()))
        if self._runner is not None:
            await self._runner.cleanup()

    def knows(self, name: str) -> bool:
        """Whether somebody of that name is connected."""
        return name in self._lines

    def address(self, name: str) -> str:
        """Where somebody is connected from; empty if there is no such connection."""
        line = self._lines.get(name)
        return line.address if line is not None else ""

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

    # Connections -----------------------------------------------------------------------------------------
    async def _connection(self, request: web.Request) -> web.WebSocketResponse:
        if "Origin" in request.headers:  # a browser, led here by somebody's page
            raise web.HTTPForbidden()
        socket = web.WebSocketResponse(max_msg_size=messages.MAX_BYTES + auth.SEAL_CHARS, timeout=GOODBYE_SECONDS,
                                       compress=False)
        await socket.prepare(request)
        transport, line, seals = request.transport, None, None
        deadline = asyncio.get_running_loop().time() + AUTH_SECONDS
        try:
            seals, is_client = await asyncio.wait_for(self._prove(socket, transport), AUTH_SECONDS)
            text = await _text(socket, seals, max(0.0, deadline - asyncio.get_running_loop().time()))
            line = self._let_in(messages.decode_inbound(text or ""), is_client, socket, transport, seals)
            silence.notice(request.get_extra_info("socket"), SILENT_SECONDS)
            await self._serve(line, socket, seals)
        except WrongJob as error:
            self._refusals.log(request.remote, str(error))
            with suppress(ConnectionError):
                assert seals is not None
                await socket.send_str(seals.seal(messages.encode(messages.End(exit_code=2, reason=str(error)))))
        except (ProtocolError, asyncio.TimeoutError) as error:
            self._refusals.log(request.remote, str(error) or ("no word in time" if line else "no proof in time"))
        except ConnectionError:
            pass  # it has gone while it was being answered
        finally:
            if line is not None and self._lines.get(line.peer.name) is line:
                del self._lines[line.peer.name]
                self._host.gone(line.peer)
            await (socket if line is None else line).close()
        return socket

    async def _prove(self, socket: web.WebSocketResponse, transport: Any) -> tuple[Seals, bool]:
        """The seals of a connection to somebody who knows one of the tokens, and whether it is the clients'."""
        nonce = auth.challenge()
        await socket.send_str(nonce)
        proof = await _text(socket, None) or ""
        is_client = auth.proves(self._client_token, nonce, proof, self._channel)
        token = self._client_token if is_client else self._token
        if not is_client and not auth.proves(token, nonce, proof, self._channel):
            raise ProtocolError("it does not know the job's token" + (
                ", or somebody stands between it and this door" if self._tls else ""))
        assert self._gate is not None
        self._gate.let_in(transport)
        await socket.send_str(auth.countersign(token, nonce, proof, self._channel))
        return Seals(token, nonce, proof, self._channel, client=False), is_client

    def _let_in(self, hello: messages.Message, is_client: bool, socket: web.WebSocketResponse, transport: Any,
                seals: Seals) -> Line:
        if isinstance(hello, messages.ClientHello) is not is_client:
            raise ProtocolError(f"its token does not fit a {type(hello).__name__}")
        if is_client and sum(line.peer.kind == "client" for line in self._lines.values()) >= MAX_CLIENTS:
            raise ProtocolError(f"{MAX_CLIENTS} people's commands are connected already")
        line = Line(self._host.admit(hello, is_client), socket, transport, seals)
        former, self._lines[line.peer.name] = self._lines.get(line.peer.name), line
        if former is not None:  # it has lost its connection before we noticed, and is back
            former.cut()
        return line

    async def _serve(self, line: Line, socket: web.WebSocketResponse, seals: Seals) -> None:
        patience = CLIENT_SECONDS if line.peer.kind in ("client", "guest") else None
        while (text := await _text(socket, seals, patience)) is not None:
            reply = self._host.hear(line.peer, messages.decode_inbound(text))
            if reply is not None:
                line.say(reply)
            await line.heard(len(text))


async def _text(socket: web.WebSocketResponse, seals: Seals | None, patience: float | None = None) -> str | None:
    """What the peer says next, within ``patience`` seconds; None when it has gone."""
    raw = await socket.receive(timeout=patience)
    if raw.type is WSMsgType.TEXT:
        text = raw.data if seals is None else seals.open(raw.data)
        if text is None:
            raise ProtocolError("a message came that its peer did not send, or not now")
        return text
    if raw.type in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED):
        return None
    raise ProtocolError(f"a {raw.type.name} frame came where text was expected ({str(raw.data)[:100]!r})")
