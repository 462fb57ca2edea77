"""One connection through the coordinator's door: nobody waits for a peer that takes nothing, or that says too much."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass

from aiohttp import web

from hvtrain.control import messages
from hvtrain.control.auth import Seals

log = logging.getLogger(__name__)

MAX_UNSENT = 8 << 20
"""A peer that leaves so many bytes untaken is cut off; its loss is noticed as any other."""

FLUSH_SECONDS = 1.0
"""How long the end of the job waits for last words to leave."""

BURST_SECONDS = 2.0
"""A peer may say at once what its rate would allow in so many seconds; then its connection is read at that rate."""

BYTES_PER_SECOND = 8 << 20
MESSAGES_PER_SECOND = {"agent": 2000.0, "worker": 2000.0, "client": 20.0, "guest": 20.0}


@dataclass(frozen=True)
class Peer:
    """Somebody who was let in. ``kind``: "agent", "worker", "client", or "guest": an agent that asks for the job."""

    kind: str
    name: str


class Line:
    """The connection of a ``peer``. What is said waits in a queue of its own until the peer takes it.

    It is sealed as it leaves. ``address``: where the peer is.
    """

    def __init__(self, peer: Peer, socket: web.WebSocketResponse, transport: asyncio.Transport | None, seals: Seals):
        self.peer = peer
        end = transport.get_extra_info("peername") if transport is not None else None
        self.address: str = end[0] if end else ""
        self._socket, self._transport, self._seals = socket, transport, seals
        self._allowance = Allowance(MESSAGES_PER_SECOND[peer.kind])
        self._queue: asyncio.Queue[str] = asyncio.Queue()
        self._unsent = 0
        self._writing = asyncio.create_task(self._write())

    def say(self, message: messages.Message) -> None:
        """Send, without waiting."""
        text = messages.encode(message)
        self._unsent += len(text)
        if self._unsent > MAX_UNSENT:
            log.warning("%s %s does not take what it is sent; its connection is cut", self.peer.kind, self.peer.name)
            self.cut()
        elif not self._writing.done():
            self._queue.put_nowait(text)

    async def heard(self, size: int) -> None:
        """A message of ``size`` bytes has come; waits if there were too many, so that no more are read."""
        await asyncio.sleep(self._allowance.spend(size))

    async def flush(self) -> None:
        """Wait until what was said has left, at most FLUSH_SECONDS."""
        flushed = asyncio.ensure_future(self._queue.join())
        await asyncio.wait({flushed, self._writing}, timeout=FLUSH_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        flushed.cancel()

    def cut(self) -> None:
        """End the connection at once: its peer may be frozen, and not even answer to a good-bye."""
        self._writing.cancel()
        if self._transport is not None:
            self._transport.abort()

    async def close(self) -> None:
        """The peer is gone or was refused: say what is left to say, and good-bye."""
        await self.flush()
        self._writing.cancel()
        await self._socket.close()

    async def _write(self) -> None:
        while True:
            text = await self._queue.get()
            try:
                await self._socket.send_str(self._seals.seal(text))
            except (ConnectionError, RuntimeError):
                return  # the reader of this connection notices
            finally:
                self._unsent -= len(text)
                self._queue.task_done()


class Allowance:
    """How much a peer may say: a bucket that leaks ``rate`` messages, or BYTES_PER_SECOND, each second."""

    def __init__(self, rate: float, clock=time.monotonic):
        self._rate, self._clock = rate, clock
        self._level, self._at = 0.0, clock()  # seconds' worth of what was said and has not leaked yet

    def spend(self, size: int) -> float:
        """Take in a message of ``size`` bytes; returns for how many seconds no other should be read."""
        now = self._clock()
        self._level = max(0.0, self._level - (now - self._at)) + 1 / self._rate + size / BYTES_PER_SECOND
        self._at = now
        return max(0.0, self._level - BURST_SECONDS)
