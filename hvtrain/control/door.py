"""The coordinator's door: one WebSocket per agent, worker or person, opened by proof and guarded by types and limits."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Protocol

from aiohttp import WSMsgType, web

from hvtrain.control import auth, messages
from hvtrain.errors import ProtocolError

log = logging.getLogger(__name__)

AUTH_SECONDS = 10.0
"""A connection that has not proven itself by then is closed."""

SEND_SECONDS = 10.0
"""A peer that does not take a message for so long is not served any more; its loss is noticed elsewhere."""


@dataclass(frozen=True)
class Peer:
    """Somebody who was let in. ``kind``: "agent", "worker" or "client"."""

    kind: str
    name: str


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

    Args:
        token: proves membership of the job.
        client_token: proves the right to ask and to scale, nothing else.
    """

    def __init__(self, host: Host, *, address: str, token: str, client_token: str):
        self._host, self._address, self._token, self._client_token = host, address, token, client_token
        self._links: dict[str, web.WebSocketResponse] = {}
        self._runner: web.AppRunner | None = None

    async def open(self) -> int:
        """Listen; returns the port. Raises OSError if that is impossible."""
        app = web.Application()
        app.router.add_get("/ws", self._connection)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, self._address, 0).start()
        return self._runner.addresses[0][1]

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    def knows(self, name: str) -> bool:
        """Whether somebody of that name is connected."""
        return name in self._links

    async def send(self, name: str, message: messages.Message) -> None:
        """Send to whoever has that name; nobody, if there is no such connection."""
        link = self._links.get(name)
        if link is not None:
            await self._say(link, message)

    async def drop(self, name: str) -> None:
        """Close somebody's connection."""
        link = self._links.pop(name, None)
        if link is not None:
            await link.close()

    async def _connection(self, request: web.Request) -> web.WebSocketResponse:
        link = web.WebSocketResponse(max_msg_size=messages.MAX_BYTES, heartbeat=None)
        await link.prepare(request)
        peer: Peer | None = None
        try:
            peer = await self._let_in(link)
            async for raw in link:
                if raw.type is not WSMsgType.TEXT:
                    raise ProtocolError(f"a {raw.type.name} frame came where text was expected")
                reply = self._host.hear(peer, messages.decode_inbound(raw.data))
                if reply is not None:
                    await self._say(link, reply)
        except (ProtocolError, TypeError, asyncio.TimeoutError) as error:
            log.warning("refused a connection from %s: %s", request.remote, error or "no proof in time")
            if isinstance(error, WrongJob):
                await self._say(link, messages.End(exit_code=2, reason=str(error)))
        finally:
            if peer is not None and self._links.get(peer.name) is link:
                del self._links[peer.name]
                self._host.gone(peer)
            await link.close()
        return link

    async def _let_in(self, link: web.WebSocketResponse) -> Peer:
        nonce = auth.challenge()
        await link.send_str(nonce)
        text = await link.receive_str(timeout=AUTH_SECONDS)
        is_client = auth.proves(self._client_token, nonce, text)
        if not is_client and not auth.proves(self._token, nonce, text):
            raise ProtocolError("it does not know the job's token")
        hello = messages.decode_inbound(await link.receive_str(timeout=AUTH_SECONDS))
        if isinstance(hello, messages.ClientHello) is not is_client:
            raise ProtocolError(f"its token does not fit a {type(hello).__name__}")
        peer = self._host.admit(hello, is_client)
        former, self._links[peer.name] = self._links.get(peer.name), link
        if former is not None:  # it has lost its connection before we noticed, and is back
            await former.close()
        return peer

    @staticmethod
    async def _say(link: web.WebSocketResponse, message: messages.Message) -> None:
        try:
            await asyncio.wait_for(link.send_str(messages.encode(message)), SEND_SECONDS)
        except (ConnectionError, asyncio.TimeoutError, RuntimeError):
            pass  # its loss is noticed by the reader of this connection
