"""The gate: strangers are few, say little and have little time, and a crowd of them keeps out itself only."""

from __future__ import annotations

import asyncio
import ssl

import pytest

from hvtrain.control import refusals as module, tls
from hvtrain.control.gate import Gate
from hvtrain.control.refusals import Refusals


class Echo(asyncio.Protocol):
    """Says everything again; the line "proof" lets its connection in."""

    gate: Gate

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        if data == b"proof":
            self.gate.let_in(self.transport)
        self.transport.write(data)


def play(scenario, *, seconds=10.0, most_bytes=100, room=1000, monkeypatch=None, **more):
    async def run():
        gate = Gate(Echo, seconds=seconds, most_bytes=most_bytes, refusals=Refusals(), **more)
        gate._room = room
        Echo.gate = gate
        port = await gate.open("127.0.0.1")
        try:
            await asyncio.wait_for(scenario(gate, port), 20)
        finally:
            gate.close()
            await asyncio.sleep(0.05)
        assert not gate._strangers

    asyncio.run(run())


async def knock(port, source="127.0.0.1", **more):
    return await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0), **more)


async def says(end, text):
    end[1].write(text)
    return await asyncio.wait_for(end[0].read(1000), 3)


async def shut(end, heard=b""):
    """Whether the connection ends soon, with nothing said but ``heard``."""
    try:
        return (await asyncio.wait_for(end[0].read(), 6)) in (b"", heard)
    except ConnectionError:
        return True


def test_a_stranger_has_so_much_time(caplog):
    async def scenario(gate, port):
        slow, known = await knock(port), await knock(port)
        assert await says(known, b"proof") == b"proof"
        for _ in range(3):  # one byte at a time does not help
            slow[1].write(b"x")
            await asyncio.sleep(0.05)
        assert await slow[0].read(1) == b"x" and await shut(slow, b"xx")
        await asyncio.sleep(0.3)
        assert await says(known, b"still here") == b"still here"

    play(scenario, seconds=1.0)
    assert "no proof in time" in caplog.text


def test_a_stranger_may_say_so_much(caplog):
    async def scenario(gate, port):
        loud, known = await knock(port), await knock(port)
        assert await says(known, b"proof") == b"proof" and await says(known, b"x" * 500) == b"x" * 500
        loud[1].write(b"x" * 101)
        assert await shut(loud)

    play(scenario)
    assert "too much for a stranger" in caplog.text


def test_a_crowd_keeps_out_itself_only(caplog):
    """One honest stranger from another address stays, however many come."""
    async def scenario(gate, port):
        honest = await knock(port, "127.0.0.9")
        crowd = [await knock(port) for _ in range(20)]
        assert await shut(crowd[0]) and len(gate._all_strangers()) <= 5
        assert await says(crowd[-1], b"the newest") == b"the newest"
        assert await says(honest, b"proof") == b"proof"

    play(scenario, room=5)
    assert "too many others" in caplog.text


def test_an_address_that_is_not_admitted_is_not_even_heard(caplog):
    async def scenario(gate, port):
        made = []
        gate.make = lambda: made.append(1) or Echo()
        assert await shut(await knock(port, "127.0.0.9")) and not made
        assert await says(await knock(port), b"hello") == b"hello"

    play(scenario, admits=lambda address: address == "127.0.0.1")
    assert "from 127.0.0.9: nobody at that address" in caplog.text


def test_who_does_not_even_shake_hands_is_bounded_in_time_and_number(caplog):
    """With TLS, silence before the handshake counts as well."""
    async def scenario(gate, port):
        mute = [await knock(port) for _ in range(8)]
        await asyncio.sleep(0.05)
        assert len(gate._all_strangers()) <= 5
        wrong = await knock(port)
        wrong[1].write(b"GET / HTTP/1.1\r\n\r\n")
        assert await shut(wrong)
        assert await says(await knock(port, "127.0.0.9", ssl=tls.client_context()), b"proof") == b"proof"
        assert all([await shut(end) for end in mute])

    play(scenario, room=5, seconds=3.0, tls=tls.server_context()[0])
    assert "no proof in time" in caplog.text and "no connection" in caplog.text


def test_old_versions_of_tls_are_not_spoken():
    async def scenario(gate, port):
        context = tls.client_context()
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await knock(port, ssl=context)

    play(scenario, tls=tls.server_context()[0])


def test_descriptors_that_run_out_do_not_end_it(monkeypatch):
    async def scenario(gate, port):
        loop, failed = asyncio.get_running_loop(), []
        accept = loop.sock_accept

        async def broke(sock):
            if len(failed) < 3:
                failed.append(1)
                raise OSError(24, "Too many open files")
            return await accept(sock)

        monkeypatch.setattr(loop, "sock_accept", broke)
        await knock(port)  # is accepted by the call that waits already
        assert await says(await knock(port), b"hello") == b"hello" and len(failed) == 3

    play(scenario)


def test_the_listener_is_on_one_address_and_gone_after_the_close():
    async def scenario(gate, port):
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.2", port)
        stranger = await knock(port)
        gate.close()
        assert await shut(stranger)
        with pytest.raises(OSError):
            await knock(port)

    play(scenario)


def test_refusals_are_logged_by_the_second(caplog, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    refusals = Refusals(" to a round's rendezvous")
    for _ in range(1000):
        refusals.log("10.0.0.9", "why")
    now[0] += 2.0
    refusals.log("10.0.0.9", "why")
    assert len(caplog.records) == module.LOGGED_PER_SECOND + 2
    assert "990 more connections to a round's rendezvous were refused" in caplog.text
