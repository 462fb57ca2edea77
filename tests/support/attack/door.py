"""What is tried at the coordinator's door.

Each function plays one line of the list, checks that it came to nothing, and says what happened.
"""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp

from hvtrain.control import asking, auth, door as doors, messages as m, tls, versions
from hvtrain.control.client import Address, Link
from hvtrain.errors import EnvironmentNotReady, ProtocolError, TokenRefused
from tests.support.attack.target import SHUT, Target, say, status

ENDS = (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSING, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)
HEAD = b"Host: x\r\n"
UPGRADE = (b"GET /ws HTTP/1.1\r\n" + HEAD + b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
           b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n")


@asynccontextmanager
async def websocket(target: Target, **more: Any):
    """A WebSocket to the door, and the channel."""
    async with aiohttp.ClientSession() as http:
        url = f"{'https' if target.tls else 'http'}://{target.host}:{target.port}/ws"
        async with http.ws_connect(url, ssl=tls.client_context() if target.tls else True, max_msg_size=1 << 24,
                                   **more) as socket:
            seen = socket.get_extra_info("ssl_object")
            yield socket, tls.channel(seen.getpeercert(binary_form=True)) if seen is not None else ""


async def answers(socket: aiohttp.ClientWebSocketResponse) -> list[str]:
    """Texts until the door shuts the connection."""
    found = []
    with suppress(ConnectionError):
        while (raw := await asyncio.wait_for(socket.receive(), doors.AUTH_SECONDS + 3)).type not in ENDS:
            found.append(raw.data)
    return found


def visit(target: Target, *frames: str | bytes, token: str = "", nonce: str = "", headers: Any = None) -> list[str]:
    """Prove knowledge of ``token`` (or nothing), send ``frames`` sealed by it; the door's words after its nonce."""
    async def play() -> list[str]:
        async with websocket(target, headers=headers) as (socket, channel):
            fresh = await socket.receive_str()
            seals = None
            if token:
                proof = auth.answer(token, nonce or fresh, channel)
                await socket.send_str(proof)
                seals = auth.Seals(token, fresh, proof, channel, client=True)
            for frame in frames:
                with suppress(ConnectionError):
                    await (socket.send_bytes(frame) if isinstance(frame, bytes) else
                           socket.send_str(seals.seal(frame) if seals else frame))
            return await answers(socket)

    return asyncio.run(play())


# Who one is --------------------------------------------------------------------------------------------
def forged_worker(target: Target) -> str:
    assert visit(target, m.encode(m.WorkerHello(worker="w0", pid=1, again=True)), token=auth.new_token()) == []
    return "refused: it does not know the token; nothing was said to it but a nonce"


def forged_agent(target: Target) -> str:
    for hello in (m.AgentHello(agent="joined@h", host="h", slots=9, pid=1, version="0", job_digest="0" * 64),
                  m.JobAsk(host="h", slots=9, versions={})):
        assert visit(target, m.encode(hello), token=auth.new_token()) == []
    return "refused, whether it claims to know the job or asks for it"


def persons_token(target: Target) -> str:
    for hello in (m.WorkerHello(worker="w0", pid=1, again=True), m.JobAsk(host="h", slots=1, versions={})):
        assert len(visit(target, m.encode(hello), token=target.client_token)) == 1  # the countersign
    return "refused: the token of control.json admits to questions and to scaling, not to the job"


def told(target: Target, token: str) -> str:
    """What is said to somebody who does have the job's ``token``: nothing that he would not know."""
    request = m.JobAsk(host="elsewhere", slots=1, versions=versions.own())
    given = m.encode(asyncio.run(asking.ask(Address(target.host, target.port, token, tls=None), request)))
    assert token not in given and target.client_token not in given
    return f"the job ({len(given):,} bytes), but neither its token nor that of control.json"


def replayed_proof(target: Target) -> str:
    old = auth.challenge()
    assert visit(target, m.encode(m.ClientHello(command="ps")), token=target.client_token, nonce=old) == []
    return "refused: the proof answers another connection's nonce"


def recorded_session(target: Target) -> str:
    """All that a real client said is sent again, byte for byte, by one who reads the WebSocket (an endpoint of TLS)."""
    async def record() -> list[str]:
        said: list[str] = []
        link = Link(Address(target.host, target.port, target.client_token, target.tls))
        send = aiohttp.ClientWebSocketResponse.send_str

        async def listening(self: Any, text: str, *args: Any) -> None:
            said.append(text)
            await send(self, text, *args)

        aiohttp.ClientWebSocketResponse.send_str = listening  # type: ignore[method-assign]
        try:
            await link.open(m.ClientHello(command="ps"))
            await link.send(m.Query())
            assert isinstance(await link.receive(), m.Overview)
        finally:
            aiohttp.ClientWebSocketResponse.send_str = send  # type: ignore[method-assign]
            await link.close()
        return said

    recorded = asyncio.run(record())
    assert len(recorded) == 3 and visit(target, *recorded) == []
    return f"refused at the first of its {len(recorded)} messages"


def middle(target: Target) -> str:
    """A proxy with a certificate of its own, which hands every byte on."""
    async def play() -> None:
        context = tls.server_context()[0]

        met: list[asyncio.Task[Any] | None] = []

        async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            met.append(asyncio.current_task())
            far_reader, far_writer = await asyncio.open_connection(target.host, target.port, ssl=tls.client_context())

            async def hand_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
                with suppress(OSError):
                    while data := await source.read(1 << 16):
                        sink.write(data)
                        await sink.drain()
                sink.close()

            await asyncio.gather(hand_on(reader, far_writer), hand_on(far_reader, writer), return_exceptions=True)

        server = await asyncio.start_server(meet, "127.0.0.1", 0, ssl=context)
        link = Link(Address("127.0.0.1", server.sockets[0].getsockname()[1], target.client_token, True))
        try:
            await link.open(m.ClientHello(command="ps"))
        except TokenRefused:
            return
        finally:
            await link.close()
            server.close()
            await asyncio.wait([task for task in met if task is not None], timeout=3)
        raise AssertionError("the man in the middle was not found out")

    asyncio.run(play())
    return "found out by both ends: the proofs hold another certificate; not a message was said"


def no_tls(target: Target) -> str:
    async def play() -> None:
        link = Link(Address(target.host, target.port, target.client_token, tls=False))
        try:
            await link.open(m.ClientHello(command="ps"))
        except EnvironmentNotReady:
            return
        raise AssertionError("the door has spoken without TLS")

    asyncio.run(play())
    return "refused: the door speaks TLS 1.3 and nothing else"


# What one says -----------------------------------------------------------------------------------------
def garbage(target: Target) -> str:
    for text in (os.urandom(4000), target.bomb * 20, b"\0" * 4000, b"GET /ws HTTP/9.9\r\n\r\n", b"\r\n" * 2000):
        for raw in (True, False):
            assert status(say(target.connect(raw=raw), text, b"\r\n\r\n")) in ("400", "404", SHUT)
    return "each connection shut, or 400"


def pickle_bomb(target: Target) -> str:
    assert visit(target, target.bomb) == visit(target, target.bomb.decode("latin-1")) == []
    assert len(visit(target, target.bomb, token=target.client_token)) == 1
    assert len(visit(target, target.bomb.decode("latin-1"), token=target.client_token)) == 1
    assert not target.marker.exists()
    return "never loaded: refused before the proof, and after it as no message"


def smuggling(target: Target) -> str:
    hidden = b"GET /ws HTTP/1.1\r\n" + HEAD + b"\r\n"
    found = []
    for head in (
            b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", b"Content-Length: 5\r\nContent-Length: 6\r\n",
            b"Transfer-Encoding: xchunked\r\n", b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
            b"Transfer-Encoding\t: chunked\r\n", b" folded: 1\r\n", b"Content-Length: +5\r\n", b"X: a\0b\r\n"):
        for request in (b"POST /ws HTTP/1.1\r\n" + HEAD + head + b"\r\n0\r\n\r\n" + hidden,
                        UPGRADE + head + b"\r\n0\r\n\r\n" + hidden):
            answer = say(target.connect(), request, b"\r\n\r\n")
            assert b'"' not in answer and answer.count(b"HTTP/1.1 101") <= 1
            found.append(status(answer))
    for path in (b"/../../etc/passwd", b"/%2e%2e/%2e%2e/etc/passwd", b"//etc/passwd", b"/ws/..%2f..%2fetc/passwd",
                 b"http://other/ws", b"*", b"/ws\\..\\x", b"/" + b"a" * 20_000):
        answer = say(target.connect(), b"GET " + path + b" HTTP/1.1\r\n" + HEAD + b"Connection: close\r\n\r\n")
        assert b"root:" not in answer
        found.append(status(answer))
    counts = ", ".join(f"{found.count(kind)} x {kind}" for kind in sorted(set(found)))
    return f"{counts}; no proxy stands before the door, and behind it is one path"


def browser(target: Target) -> str:
    answer = say(target.connect(), UPGRADE + b"Origin: http://evil.example\r\n\r\n", shut=False)
    assert status(answer) == "403"
    return "403: who sends an Origin is a browser that somebody's page has led here"


def names(target: Target) -> str:
    """Somebody with a token says names that lead elsewhere."""
    for name in ("../../../tmp/x", "/etc/passwd", "..", "w0\0", "w0/../../x", "\x1b[2J", "w0\n"):
        hello = json.dumps({"type": "client_hello", "command": name * 30})
        assert len(visit(target, hello, token=target.client_token)) == 1
        for text in ('{"type":"worker_hello","pid":1,"worker":%s}', '{"type":"job_ask","slots":1,"host":%s}'):
            try:
                m.decode_inbound(text % json.dumps(name))
            except ProtocolError:
                continue
            raise AssertionError(name)
    return "refused as no messages; ranks, which name the logs, are numbers"


LINES = {
    "a forged worker": forged_worker, "a forged agent": forged_agent, "a person's token used for the job": persons_token,
    "a replayed proof": replayed_proof, "a recorded session, sent again": recorded_session,
    "a man in the middle with a certificate of his own": middle, "talking the door out of TLS": no_tls,
    "garbage": garbage, "a pickle bomb": pickle_bomb, "smuggled requests and paths": smuggling,
    "a browser led here by a page": browser, "names that lead elsewhere": names,
}
