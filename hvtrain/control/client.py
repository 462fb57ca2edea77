"""A process's connection to the coordinator: for the agent on its event loop, for a worker in a thread."""

from __future__ import annotations

import asyncio
import logging
import threading
from dataclasses import dataclass
from typing import Any, Callable

import aiohttp

from hvtrain.control import auth, messages, silence, tls
from hvtrain.errors import CoordinatorGone, EnvironmentNotReady, ProtocolError, TokenRefused

log = logging.getLogger(__name__)

CONNECT_SECONDS = 15.0
"""How long a connection to the coordinator may take, proof included."""

REOPEN_SECONDS = 0.2
"""Pause between two attempts to reach a coordinator that has gone."""

ATTEMPT_SECONDS = 3.0
"""How long one such attempt may take: TCP repeats itself ever more seldom, and would notice late that a network is back."""

MAX_PENDING = 10_000
"""Messages that may wait for a coordinator that takes nothing; then measurements are dropped."""


@dataclass(frozen=True)
class Address:
    """Where the coordinator listens, and the token that admits to it. ``tls`` None: whether it speaks that is found out."""

    host: str
    port: int
    token: str
    tls: bool | None = False

    def __repr__(self) -> str:  # the token must not reach a log by accident
        return f"Address({self.host}:{self.port})"


class Link:
    """An authenticated connection. Use within one event loop.

    ``patience`` (seconds): a coordinator that gives no sign of life for so long, though its host may be there, ends the
    connection. ``unacked`` (seconds): so does a network that confirms nothing for so long, behind a cut cable perhaps.
    None: never.
    """

    def __init__(self, address: Address, patience: float | None = None, unacked: float | None = None):
        self._address, self._unacked = address, unacked
        # aiohttp asks after that time, and waits for the answer half as long again; a busy process answers late.
        self._ping = max(1.0, patience / 1.5) if patience is not None else None
        self._session: aiohttp.ClientSession | None = None
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._seals: auth.Seals | None = None
        self._sending = asyncio.Lock()  # seals are numbered

    async def open(self, hello: messages.Message, seconds: float = CONNECT_SECONDS) -> None:
        """Connect, prove, say hello, within so many ``seconds``.

        Raises:
            CoordinatorGone: nobody listens there.
            TokenRefused: the two ends do not know the same token.
            EnvironmentNotReady: the coordinator cannot be reached or refuses.
        """
        # trust_env stays off: a proxy of the environment has no business between a job's processes.
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(sock_connect=CONNECT_SECONDS))
        try:
            await asyncio.wait_for(self._handshake(hello), seconds)
        except TokenRefused:
            await self.close()
            raise
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError, TypeError) as error:
            await self.close()
            refused = isinstance(getattr(error, "os_error", error), ConnectionRefusedError)
            kind = CoordinatorGone if refused else EnvironmentNotReady
            raise kind(f"the coordinator at {self._address.host}:{self._address.port} cannot be "
                                      f"reached: {error or type(error).__name__}.") from None

    async def _handshake(self, hello: messages.Message) -> None:
        self._socket, channel = await self._connect()
        if self._unacked is not None:
            silence.notice(self._socket.get_extra_info("socket"), self._unacked)
        nonce = await self._socket.receive_str()
        answer = auth.answer(self._address.token, nonce, channel)
        await self._socket.send_str(answer)
        try:
            proof = await self._socket.receive_str()
        except TypeError:  # the door was shut instead
            if self._socket.close_code != aiohttp.WSCloseCode.OK:  # not in order: its process has ended, say
                raise ConnectionError("it has ended the connection") from None
            raise TokenRefused(f"the coordinator at {self._address.host}:{self._address.port} does not accept this token: another "
                               f"job's, or a former start's{', or somebody stands between' if channel else ''}.") from None
        if not auth.is_countersigned(self._address.token, nonce, answer, proof, channel):
            raise ConnectionError("it does not know the job's token")
        self._seals = auth.Seals(self._address.token, nonce, answer, channel, client=True)
        await self.send(hello)  # not earlier: an impostor is told nothing

    async def _connect(self) -> tuple[aiohttp.ClientWebSocketResponse, str]:
        """A WebSocket, and the name of its channel."""
        assert self._session is not None
        place, wanted = f"{_bracket(self._address.host)}:{self._address.port}/ws", self._address.tls
        more: dict[str, Any] = {"max_msg_size": messages.MAX_BYTES + auth.SEAL_CHARS, "heartbeat": self._ping}
        if wanted is not False:
            try:
                socket = await self._session.ws_connect(f"https://{place}", ssl=tls.client_context(), **more)
                return socket, tls.channel(socket.get_extra_info("ssl_object").getpeercert(binary_form=True))
            except aiohttp.ClientConnectorSSLError:
                if wanted:
                    raise ConnectionError("it does not speak TLS, which launch.tls asks for") from None
        return await self._session.ws_connect(f"http://{place}", **more), ""

    @property
    def local_address(self) -> str:
        """This end's address on the network of the job; empty if there is no connection."""
        end = self._socket.get_extra_info("sockname") if self._socket is not None else None
        return end[0] if end else ""

    async def send(self, message: messages.Message) -> None:
        """Send. Raises ConnectionError if there is no connection."""
        if self._socket is None or self._seals is None:
            raise ConnectionError("not connected")
        text = messages.encode(message)
        async with self._sending:
            await self._socket.send_str(self._seals.seal(text))

    async def receive(self) -> messages.Message | None:
        """The next message, or None when the connection is gone, or somebody else speaks on it."""
        assert self._socket is not None and self._seals is not None
        while True:
            raw = await self._socket.receive()
            if raw.type is aiohttp.WSMsgType.TEXT:
                text = self._seals.open(raw.data)
                if text is None:
                    log.error("a message came that the coordinator did not send, or not now; the connection is closed")
                    await self._socket.close()
                    return None
                try:
                    return messages.decode_outbound(text)
                except ProtocolError as error:
                    log.warning("ignored: %s", error)
                    continue
            if raw.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSING, aiohttp.WSMsgType.CLOSED,
                            aiohttp.WSMsgType.ERROR):
                return None

    async def close(self) -> None:
        if self._socket is not None:
            await self._socket.close()
        if self._session is not None:
            await self._session.close()


class ThreadedLink:
    """A worker's link: a daemon thread reads, so that training code never waits for the coordinator.

    Args:
        hello: the first message; its argument tells whether this is a connection opened ``again``.
        on_message: called in the thread with every message; must be quick.
        on_back: called in the thread when a broken connection has been replaced: messages may have been lost.
        on_lost: called in the thread when the coordinator is gone for good.
        beat: called every ``beat_seconds`` for the message to send as a sign of life, or None for silence.
        patience: a connection that breaks is opened again until the coordinator was not heard for so many seconds.
        unacked: as of :class:`Link`.
    """

    def __init__(self, address: Address, hello: Callable[[bool], messages.Message], *,
                 on_message: Callable[[messages.Message], None], on_back: Callable[[], None],
                 on_lost: Callable[[], None], beat: Callable[[], messages.Message | None], beat_seconds: float,
                 patience: float, unacked: float | None = None):
        self._address, self._hello, self._patience, self._unacked = address, hello, patience, unacked
        self._link = Link(address, patience, unacked)
        self._heard, self._attempts = 0.0, 0  # when the coordinator last said something; attempts to reach it since
        self._on_message, self._on_back, self._on_lost = on_message, on_back, on_lost
        self._beat, self._beat_seconds = beat, beat_seconds
        self._loop = asyncio.new_event_loop()
        self._opened: threading.Event = threading.Event()
        self._error: Exception | None = None
        self._closing, self._pending = False, 0
        self._serving: asyncio.Task | None = None
        self._thread = threading.Thread(target=self._run, name="hvtrain-link", daemon=True)

    def open(self) -> None:
        """Connect. Raises EnvironmentNotReady."""
        self._thread.start()
        if not self._opened.wait(CONNECT_SECONDS + 5):
            raise EnvironmentNotReady("the coordinator does not answer.")
        if self._error is not None:
            raise self._error

    @property
    def local_address(self) -> str:
        """See :attr:`Link.local_address`."""
        return self._link.local_address

    def post(self, message: messages.Message) -> None:
        """Send without waiting; a lost connection is reported by ``on_lost``, not here.

        While the coordinator takes nothing, measurements beyond MAX_PENDING messages are dropped, and nothing else.
        """
        if self._pending >= MAX_PENDING and isinstance(message, messages.Report):
            return
        self._pending += 1
        self._loop.call_soon_threadsafe(lambda: self._loop.create_task(self._send_posted(message)))

    def flush(self, message: messages.Message, seconds: float = 5.0) -> bool:
        """Send and wait until it has left this process; False if that did not work in time."""
        if not self._loop.is_running():
            return False
        future = asyncio.run_coroutine_threadsafe(self._send_quietly(message), self._loop)
        try:
            future.result(seconds)
        except Exception:  # noqa: BLE001 - the process is about to end; there is nobody left to tell
            return False
        return True

    def close(self) -> None:
        """Drop the connection; what :meth:`flush` has sent is out already."""
        self._closing = True
        if self._serving is not None and self._loop.is_running():
            self._loop.call_soon_threadsafe(self._serving.cancel)
            self._thread.join(1.0)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._serving = self._loop.create_task(self._serve())
            self._loop.run_until_complete(self._serving)
        except asyncio.CancelledError:
            pass
        finally:
            if not self._closing:
                self._on_lost()

    async def _serve(self) -> None:
        try:
            await self._link.open(self._hello(False))
        except Exception as error:  # noqa: BLE001 - handed to the thread that waits in open()
            self._error = error
            self._closing = True
            return
        finally:
            self._opened.set()
        self._heard = self._loop.time()
        while True:
            pulse = asyncio.create_task(self._pulse())
            try:
                while (message := await self._link.receive()) is not None:
                    self._heard, self._attempts = self._loop.time(), 0
                    self._on_message(message)
            finally:
                pulse.cancel()
            if self._attempts:  # it let us in, and sent us away without a word
                await asyncio.sleep(REOPEN_SECONDS)
            if self._closing or not await self._open_again():
                return
            self._on_back()

    async def _open_again(self) -> bool:
        # At least once: this process may have stood still, and be late itself.
        while self._attempts == 0 or self._loop.time() < self._heard + self._patience:
            self._attempts += 1
            await self._link.close()
            self._link = Link(self._address, self._patience, self._unacked)
            try:
                await self._link.open(self._hello(True), ATTEMPT_SECONDS)
                return True
            except CoordinatorGone:
                return False
            except EnvironmentNotReady:
                await asyncio.sleep(REOPEN_SECONDS)
        return False

    async def _pulse(self) -> None:
        while True:
            message = self._beat()
            if message is not None:
                await self._send_quietly(message)
            await asyncio.sleep(self._beat_seconds)

    async def _send_posted(self, message: messages.Message) -> None:
        try:
            await self._send_quietly(message)
        finally:
            self._pending -= 1

    async def _send_quietly(self, message: messages.Message) -> None:
        try:
            await self._link.send(message)
        except (ConnectionError, RuntimeError, aiohttp.ClientError):
            log.debug("a message could not be sent; the reader will notice")
        except ProtocolError as error:
            log.error("%s", error)


def _bracket(host: str) -> str:
    return f"[{host}]" if ":" in host else host
