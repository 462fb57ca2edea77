"""What is tried at the coordinator's door by sheer size, number and slowness; as in :mod:`.door`."""

from __future__ import annotations

import asyncio
import os
import zlib
from contextlib import suppress

from hvtrain.control import door as doors, messages as m
from hvtrain.control.client import Address, Link
from tests.support.attack.door import HEAD, UPGRADE, visit, websocket
from tests.support.attack.target import SHUT, Target, say, shut_within, status


def oversized(target: Target) -> str:
    before = target.memory()
    for token in ("", target.client_token):
        for size in (doors.STRANGER_BYTES + 1000, m.MAX_BYTES + 1000, 8 << 20):
            if size > m.MAX_BYTES or not token:
                assert len(visit(target, "x" * size, token=token)) <= bool(token)
    for head in (b"GET /ws HTTP/1.1\r\n" + b"X: " + b"y" * 100_000, b"GET /ws HTTP/1.1\r\n" + b"X: y\r\n" * 20_000,
                 b"POST /ws HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n" + b"z" * 200_000):
        assert status(say(target.connect(), head)) in ("400", "405", SHUT)
    grown = target.memory() - before
    assert grown < 32 << 20, grown
    return f"shut; the coordinator's memory grew by {grown >> 20} MiB"


def compressed_bomb(target: Target) -> str:
    before = target.memory()
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = packer.compress(bytes(64 << 20)) + packer.flush(zlib.Z_SYNC_FLUSH)

    async def offered() -> str | None:
        async with websocket(target, compress=15) as (socket, _):
            return socket._response.headers.get("Sec-WebSocket-Extensions")

    assert asyncio.run(offered()) is None
    frame = b"\xc1\xff" + len(bomb).to_bytes(8, "big") + bytes(4) + bomb  # text, compressed, masked by zeros
    connection = target.connect()
    connection.sendall(UPGRADE + b"\r\n")
    assert connection.recv(4096).startswith(b"HTTP/1.1 101")
    say(connection, frame)
    assert status(say(target.connect(), b"POST /ws HTTP/1.1\r\n" + HEAD + b"Content-Encoding: deflate\r\nContent-Length: "
                      + str(len(bomb)).encode() + b"\r\n\r\n" + bomb)) in ("405", SHUT)
    grown = target.memory() - before
    assert grown < 32 << 20, grown
    return f"never unpacked ({len(bomb) >> 10} KiB stand for 64 MiB); memory grew by {grown >> 20} MiB"


async def question(target: Target) -> m.Message | None:
    """What a person's command is answered."""
    link = Link(Address(target.host, target.port, target.client_token, target.tls))
    try:
        await link.open(m.ClientHello(command="ps"))
        await link.send(m.Query())
        return await link.receive()
    finally:
        await link.close()


def slow_sender(target: Target) -> str:
    """Half a request; half a proof; nothing at all; half a handshake of TLS: all at once, each a byte now and then."""
    connections = [target.connect() for _ in range(3)] + [target.connect(raw=True) for _ in range(2)]
    for connection, text in zip(connections, (b"GET /ws HTTP/1.1\r\nX: ", UPGRADE + b"\r\n", b"", b"\x16\x03\x01", b"")):
        if text:
            connection.sendall(text)
    took = [shut_within(connection, doors.AUTH_SECONDS + 4) for connection in connections]
    return f"each shut, the last after {max(took):.0f} s (the bound is {doors.AUTH_SECONDS:g} s)"


def many(target: Target) -> str:
    """A crowd from one address; a person's command from another must get through meanwhile."""
    crowd = [target.connect(raw=True, source="127.0.0.66") for _ in range(600)]
    try:
        assert isinstance(asyncio.run(question(target)), m.Overview)
        held = len(os.listdir(f"/proc/{target.pid}/fd"))
        assert held < 256, held
    finally:
        for connection in crowd:
            connection.close()
    return f"of 600 the oldest were shut ({held} descriptors held); a command from another address was answered"


def loud(target: Target) -> str:
    """A person's command that asks without end."""
    async def play() -> int:
        link = Link(Address(target.host, target.port, target.client_token, target.tls))
        await link.open(m.ClientHello(command="ps"))
        for _ in range(500):
            await link.send(m.Query())
        answered = []

        async def listen() -> None:
            while (answer := await link.receive()) is not None:
                answered.append(answer)

        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(listen(), 1.0)
        await link.close()
        return len(answered)

    count = asyncio.run(play())
    assert count < 100, count
    return f"{count} of 500 questions answered within a second; the others wait"


def crowd_of_commands(target: Target) -> str:
    async def play() -> int:
        links = [Link(Address(target.host, target.port, target.client_token, target.tls))
                 for _ in range(doors.MAX_CLIENTS + 8)]
        for link in links:
            await link.open(m.ClientHello(command="ps"))
        got = 0
        for link in links:
            with suppress(ConnectionError, RuntimeError):
                await link.send(m.Query())
                got += await asyncio.wait_for(link.receive(), 5) is not None
            await link.close()
        return got

    got = asyncio.run(play())
    assert got <= doors.MAX_CLIENTS
    return f"{got} of {doors.MAX_CLIENTS + 8} were let in"


LINES = {
    "oversized heads, bodies, messages": oversized, "compressed bombs": compressed_bomb, "too many connections": many,
    "too many questions": loud, "too many commands": crowd_of_commands, "slow senders": slow_sender,
}
