"""The door: nobody waits for a peer that is slow, strangers are shown out in time, and nobody may say too much."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

import pytest

from hvtrain.control import door as module, gate as gates, line as lines, messages as m
from hvtrain.control.line import BURST_SECONDS, BYTES_PER_SECOND, Allowance
from tests.support.control import HELLO, LIMITS, expect, frozen, get, run, until


async def closed(reader: asyncio.StreamReader) -> bool:
    try:
        while await asyncio.wait_for(reader.read(1000), 3):
            pass
    except ConnectionError:
        pass
    return True


# Strangers -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("words", [
    b"", b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgr", b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"], ids=["nothing", "half a head", "another page", "no proof"])
def test_who_does_not_prove_himself_in_time_is_shown_out(words, monkeypatch, caplog):
    monkeypatch.setattr(module, "AUTH_SECONDS", 0.1)
    monkeypatch.setattr(module, "GOODBYE_SECONDS", 0.05)

    async def scenario(job):
        await job.start()
        reader, writer = await asyncio.open_connection("127.0.0.1", job.address.port)
        writer.write(words)
        assert await closed(reader)
        writer.close()
        await asyncio.sleep(0.3)  # those who did prove themselves stay
        assert "host" in job.state.agents and len(job.coordinator._door._lines) == 3

    run(scenario)
    assert "no proof in time" in caplog.text


def test_many_strangers_do_not_keep_the_workers_out(monkeypatch):
    monkeypatch.setattr(gates.resource, "getrlimit", lambda _: (40, 40))

    async def scenario(job):
        strangers = [await asyncio.open_connection("127.0.0.1", job.address.port) for _ in range(60)]
        workers = await job.start()
        gate = job.coordinator._door._gate
        await until(lambda: len(gate._visitors) <= 20 + 3)
        assert await closed(strangers[0][0])  # the oldest had to go
        for _, writer in strangers:
            writer.close()
        await job.finish(workers)

    run(scenario)


@pytest.mark.parametrize(("words", "status"), [
    (b"GET /ws HTTP/9.9\r\n\r\n", b"400"), (b"\x16\x03\x01\x02\x00\x01", b"400"), (b"GET /ws HTTP/1.1\r\n\r\n", b"400"),
    (b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
     b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nOrigin: http://evil.example\r\n\r\n", b"403")])
def test_what_is_no_request_of_ours_is_one_line_in_the_log(words, status, caplog):
    """The server's own log would have a traceback for each, as often as a stranger likes."""
    async def scenario(job):
        for _ in range(5):
            reader, writer = await asyncio.open_connection("127.0.0.1", job.address.port)
            writer.write(words + b"\r\n")
            assert status in await asyncio.wait_for(reader.read(200), 3)
            writer.close()

    run(scenario)
    assert "Traceback" not in caplog.text and not any(record.exc_info for record in caplog.records)


# Clients -------------------------------------------------------------------------------------------------
def test_there_is_room_for_so_many_commands_only_and_not_for_idle_ones(monkeypatch, caplog):
    monkeypatch.setattr(module, "MAX_CLIENTS", 2)
    monkeypatch.setattr(module, "CLIENT_SECONDS", 0.2)

    async def scenario(job):
        workers = await job.start()
        idle = [await job.link(m.ClientHello(command="ps"), job.client) for _ in range(2)]
        await until(lambda: len(job.coordinator._door._lines) == 5)
        third = await job.link(m.ClientHello(command="ps"), job.client)
        assert await get(third) is None
        for link in idle:
            assert await get(link) is None
        (found,) = await job.ask(m.Query())
        assert isinstance(found, m.Overview)
        await job.finish(workers)

    run(scenario)
    assert "2 people's commands are connected already" in caplog.text and "no word in time" in caplog.text


# Slow and loud peers -------------------------------------------------------------------------------------
def test_a_peer_that_takes_nothing_is_cut_off_and_holds_nobody_up(monkeypatch, caplog):
    monkeypatch.setattr(lines, "MAX_UNSENT", 1 << 20)

    async def scenario(job):
        first, second = await job.start()
        door, loop = job.coordinator._door, asyncio.get_running_loop()
        with frozen(second.link):
            began = loop.time()
            while door.knows("w1") and loop.time() - began < 3:
                await door.send("w1", m.Cut(round=1, reason="x" * 30_000))
                await asyncio.sleep(0)
            assert not door.knows("w1") and loop.time() - began < 3
        await door.send("w0", m.Pause(round=1))
        await expect(first.link, m.Pause)

    with caplog.at_level(logging.WARNING):
        run(scenario)
    assert "w1 does not take what it is sent" in caplog.text


def test_a_loud_peer_is_read_no_faster_than_its_rate(monkeypatch):
    monkeypatch.setitem(lines.MESSAGES_PER_SECOND, "worker", 50.0)
    monkeypatch.setattr(lines, "BURST_SECONDS", 0.5)

    async def scenario(job):
        first, second = await job.start()
        for step in range(200):
            await second.say(m.Beat(step=1, ticks=step))
        await first.say(m.Beat(step=1, ticks=7))
        await until(lambda: job.state.workers["w0"].ticks == 7)  # the others do not notice
        assert job.state.workers["w1"].ticks < 199  # 25 at once, then one in 20 ms
        await until(lambda: job.state.workers["w1"].ticks > 30)
        with frozen(second.link):
            pass  # its good-bye would have to wait its turn as well

    run(scenario)


def test_last_words_leave_before_the_door_is_shut():
    async def scenario(job):
        workers = await job.start()
        door = job.coordinator._door
        for worker in workers:
            for number in range(1, 101):
                await door.send(worker.name, m.Pause(round=number))
        await door.close()
        for worker in workers:
            assert [(await expect(worker.link, m.Pause)).round for _ in range(100)] == list(range(1, 101))

    run(scenario)


def test_the_allowance():
    now = [0.0]
    allowance = Allowance(10.0, clock=lambda: now[0])
    assert [allowance.spend(0) for _ in range(int(10 * BURST_SECONDS))] == pytest.approx([0.0] * 20)
    assert allowance.spend(0) == pytest.approx(0.1) and allowance.spend(0) == pytest.approx(0.2)
    now[0] += 100.0
    assert allowance.spend(0) == 0.0
    assert allowance.spend(3 * BYTES_PER_SECOND) == pytest.approx(1.2)


def test_an_agent_is_told_to_end_even_if_it_is_slow_to_listen():
    async def scenario(job):
        agent = await job.link(HELLO)
        await until(lambda: len(job.state.workers) == 2)
        await job.coordinator._door.send("host", m.End(exit_code=7, reason="r" * 20_000))
        await job.coordinator._door.close()
        for _ in range(2):
            await expect(agent, m.Start)
        assert (await expect(agent, m.End)).exit_code == 7

    run(scenario)


def test_visitors_leave_nothing_behind():
    async def scenario(job):
        workers = await job.start()
        door = job.coordinator._door
        before = len(asyncio.all_tasks())
        for number in range(50):
            await job.ask(m.Query())
            agent = await job.link(HELLO.model_copy(update={"agent": f"agent {number}"}))
            await agent.close()
            _, writer = await asyncio.open_connection("127.0.0.1", job.address.port)
            writer.close()
        await until(lambda: len(door._lines) == len(door._gate._visitors) == len(door._runner.server.connections) == 3)
        assert not door._gate._strangers
        await until(lambda: len(asyncio.all_tasks()) <= before + 1)
        await job.finish(workers)

    run(scenario, limits=replace(LIMITS, heartbeat=30.0))
