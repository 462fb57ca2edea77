"""Hears from horovodrun's elastic driver that hosts have come or gone.

The driver knocks at an address that was registered with it (Horovod 0.28.1, runner/common/util/network.py)::

    driver --hmac_sha256(key, body) | length | body--> here          body: PingRequest, at the registration
    driver <-hmac_sha256(key, body) | length | body--- here                HostsUpdatedRequest, at every change

Its bodies are pickles. They are never loaded here: that a message is authentic and which name occurs in it is all that
has to be known. What the driver expects to get is constant, so its bytes are written down below, opcode by opcode.

The key lies in horovodrun's open store, and the protocol has no nonce: what was recorded can be sent again. So nothing worse
follows from such a message than a look at the driver's book, once a second at most.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import logging
import secrets
import struct
from typing import Callable

log = logging.getLogger(__name__)

KEY_BYTES = DIGEST_BYTES = 32
MAX_BODY = 1 << 16
SECONDS = 5.0
"""How long a message may take to come in, and the answer to leave."""

MOST = 16
"""Connections at the same time; the driver opens one, and with one more the oldest is closed."""

NEWS_SECONDS = 1.0
"""News that follow each other more quickly count as one."""

_MODULE = "horovod.runner.common.util.network"


def _text(text: str) -> bytes:
    raw = text.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw  # BINUNICODE


def _instance(name: str, **attributes: str) -> bytes:
    """A new object of the driver's class ``name`` with these attributes."""
    state = b"".join(_text(key) + _text(value) + b"s" for key, value in attributes.items())
    return b"\x80\x03c" + f"{_MODULE}\n{name}\n".encode() + b")\x81}" + state + b"b."  # PROTO GLOBAL NEWOBJ ... BUILD


_PONG = _instance("PingResponse", service_name="worker notification service", source_address="")
_THANKS = _instance("AckResponse")


class DriverNews:
    """Calls ``on_news`` whenever the driver says that hosts have come or gone."""

    def __init__(self, on_news: Callable[[], None]):
        self._on_news = on_news
        self._key = secrets.token_bytes(KEY_BYTES)
        self._server: asyncio.Server | None = None
        self._guests: dict[asyncio.StreamWriter, None] = {}  # the oldest first
        self._told = -NEWS_SECONDS  # when it was passed on
        self._telling: asyncio.TimerHandle | None = None

    async def open(self, address: str) -> None:
        """Listen on this IPv4 address: the driver knows no others."""
        self._server = await asyncio.start_server(self._knock, address, 0)

    def registration(self, interface: str) -> bytes:
        """What the driver wants to be told under ``worker_addresses/``: ``({interface: [(address, port)]}, key)``."""
        assert self._server is not None
        address, port = self._server.sockets[0].getsockname()[:2]
        value = (b"\x80\x03}" + _text(interface) + b"]" + _text(address) + b"M" + struct.pack("<H", port) + b"\x86as"
                 + b"C" + bytes([KEY_BYTES]) + self._key + b"\x86.")
        return base64.b64encode(value)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        if self._telling is not None:
            self._telling.cancel()
        for writer in list(self._guests):
            writer.transport.abort()

    async def _knock(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._guests[writer] = None
        if len(self._guests) > MOST:
            oldest = next(iter(self._guests))
            del self._guests[oldest]
            oldest.transport.abort()
        try:
            await asyncio.wait_for(self._answer(reader, writer), SECONDS)
        except (OSError, asyncio.TimeoutError, asyncio.IncompleteReadError):
            pass  # the driver asks again, or nobody did
        finally:
            self._guests.pop(writer, None)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = await self._body(reader)
        if body is not None and b"HostsUpdatedRequest" in body:
            self._tell()
            self._send(writer, _THANKS)
        elif body is not None and b"PingRequest" in body:
            self._send(writer, _PONG)
        await writer.drain()

    def _tell(self) -> None:
        """Pass it on, now or when the last time is long enough ago; what comes until then is told with it."""
        if self._telling is None:
            loop = asyncio.get_running_loop()
            self._telling = loop.call_at(max(loop.time(), self._told + NEWS_SECONDS), self._tell_now)

    def _tell_now(self) -> None:
        self._telling, self._told = None, asyncio.get_running_loop().time()
        self._on_news()

    async def _body(self, reader: asyncio.StreamReader) -> bytes | None:
        """A message of somebody who knows our key, else None."""
        digest = await reader.readexactly(DIGEST_BYTES)
        length = struct.unpack("i", await reader.readexactly(4))[0]
        if not 0 < length <= MAX_BODY:
            return None
        body = await reader.readexactly(length)
        return body if hmac.compare_digest(digest, self._digest(body)) else None

    def _send(self, writer: asyncio.StreamWriter, body: bytes) -> None:
        writer.write(self._digest(body) + struct.pack("i", len(body)) + body)

    def _digest(self, body: bytes) -> bytes:
        return hmac.new(self._key, body, hashlib.sha256).digest()
