"""Whoever does not belong to the job, or says what he may not, is refused and logged, and harms nobody."""

from __future__ import annotations

import asyncio
import json
import pickle
import struct

import aiohttp
import pytest
from aiohttp import web

from hvtrain.control import auth, messages as m
from hvtrain.control.client import Address, Link
from hvtrain.control.messages.base import OWN_EVENTS
from hvtrain.control.rendezvous import MAX_VALUE_BYTES
from hvtrain.errors import EnvironmentNotReady, ExitCode, TokenRefused
from tests.support.control import HELLO, TOKEN, expect, get, rendezvous, run, until


async def visit(job, *frames, prove=True, token=TOKEN, sealed=True):
    """Connect by hand, answer the challenge (or not), send frames; returns what was said before the door was shut."""
    async with aiohttp.ClientSession() as http:
        async with http.ws_connect(f"http://127.0.0.1:{job.address.port}/ws", max_msg_size=1 << 24) as ws:
            nonce = await ws.receive_str()
            seals = None
            if prove:
                proof = auth.answer(token, nonce)
                await ws.send_str(proof)
                seals = auth.Seals(token, nonce, proof, client=True)
            for frame in frames:
                if isinstance(frame, bytes):
                    await ws.send_bytes(frame)
                else:
                    await ws.send_str(seals.seal(frame) if seals is not None and sealed else frame)
            said = []
            while True:
                try:
                    reply = await asyncio.wait_for(ws.receive(), 3)
                except ConnectionError:
                    return said
                if reply.type is not aiohttp.WSMsgType.TEXT:
                    assert reply.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSING,
                                          aiohttp.WSMsgType.ERROR)
                    return said
                if len(reply.data) > auth.SEAL_CHARS:  # the countersign is no message
                    said.append(m.decode_outbound(seals.open(reply.data)))


def as_client(job, *frames):
    return visit(job, CLIENT, *frames, token=job.coordinator.client_token)


def hello(**changes):
    return m.encode(HELLO.model_copy(update=changes))


class Bomb:
    """Unpickling it would leave a trace."""

    def __reduce__(self):
        return exec, ("import tests.unit.test_strangers as here; here.exploded.append(1)",)


exploded: list[int] = []
BOMB = pickle.dumps(Bomb())
WORKER = m.encode(m.WorkerHello(worker="w0", pid=100))
CLIENT = m.encode(m.ClientHello(command="ps"))
STRANGERS = {
    "wrong token": lambda job: visit(job, hello(agent="x"), token=auth.new_token()),
    "no proof at all": lambda job: visit(job, hello(agent="x"), prove=False),
    "a replayed answer": lambda job: visit(job, auth.answer(TOKEN, auth.challenge()), hello(agent="x"), prove=False),
    "a binary answer": lambda job: visit(job, b"\x80\x04\x95", prove=False),
    "garbage": lambda job: visit(job, "}{"),
    "a pickle bomb before proof": lambda job: visit(job, BOMB, prove=False),
    "a pickle bomb as text": lambda job: visit(job, BOMB.decode("latin-1")),
    "a pickle bomb": lambda job: visit(job, BOMB),
    "a pickle bomb after hello": lambda job: visit(job, hello(agent="x"), BOMB),
    "oversized before proof": lambda job: visit(job, "x" * (m.MAX_BYTES + 10), prove=False),
    "too much for a stranger": lambda job: visit(job, "x" * 20_000, prove=False),
    "unsealed": lambda job: visit(job, hello(agent="x"), sealed=False),
    "sealed by another key": lambda job: visit(job, auth.Seals(TOKEN, "n", "t", client=True).seal(hello(agent="x")), sealed=False),
    "oversized hello": lambda job: visit(job, "x" * (m.MAX_BYTES + 10)),
    "oversized after hello": lambda job: visit(job, hello(agent="x"), "x" * (m.MAX_BYTES + 10)),
    "no hello": lambda job: visit(job, m.encode(m.Beat(step=1))),
    "a second hello": lambda job: visit(job, hello(agent="x"), WORKER),
    "an unknown worker": lambda job: visit(job, m.encode(m.WorkerHello(worker="w9", pid=1))),
    "a worker that is there already": lambda job: visit(job, WORKER),
    "a worker that is there, again, with another pid": lambda job: visit(
        job, m.encode(m.WorkerHello(worker="w0", pid=4711, again=True))),
    "a second agent of that name": lambda job: visit(job, hello()),
    "an order for an agent": lambda job: visit(job, m.encode(m.Kill(worker="w0"))),
    "the client token for an agent": lambda job: visit(job, hello(agent="x"), token=job.coordinator.client_token),
    "the client token for a worker": lambda job: visit(
        job, m.encode(m.WorkerHello(worker="w0", pid=100, again=True)), token=job.coordinator.client_token),
    "the job token for a client": lambda job: visit(job, CLIENT, m.encode(m.Scale(workers=1))),
    "a client that fails a worker": lambda job: as_client(job, m.encode(m.Failed(exit_code=1, reason="r"))),
    "a client that reports": lambda job: as_client(job, m.encode(m.Report(kind="train", step=1))),
    "a client that stops": lambda job: as_client(job, m.encode(m.StopAsked(signal=15))),
    "a client that wants nobody": lambda job: as_client(job, json.dumps({"type": "scale", "workers": 0})),
    "a client that wants too many": lambda job: as_client(job, json.dumps({"type": "scale", "workers": 10**9})),
}


@pytest.mark.parametrize("stranger", STRANGERS.values(), ids=STRANGERS)
def test_strangers_are_refused_and_harm_nobody(stranger, caplog):
    async def scenario(job):
        workers = await job.start()
        before = job.state.agents.keys(), dict(job.state.workers)
        assert await stranger(job) == []
        await asyncio.sleep(0.02)
        assert job.state.agents.keys() <= before[0] | {"x"} and job.state.target == 2
        assert {name: w.stage for name, w in job.state.workers.items()} == {n: w.stage for n, w in before[1].items()}
        assert (await job.finish(workers)).exit_code == ExitCode.DONE
        assert job.coordinator.client_token not in caplog.text

    run(scenario)
    assert TOKEN not in caplog.text and not exploded
    assert "refused a connection from 127.0.0.1" in caplog.text


def test_a_recorded_proof_is_worth_nothing_on_another_connection():
    async def scenario(job):
        await job.start()
        async with aiohttp.ClientSession() as http:
            async with http.ws_connect(f"http://127.0.0.1:{job.address.port}/ws") as ws:
                nonce = await ws.receive_str()
                recorded = auth.answer(TOKEN, nonce)
                await ws.send_str(recorded)
                await ws.send_str(auth.Seals(TOKEN, nonce, recorded, client=True).seal(hello(agent="honest")))
                await until(lambda: "honest" in job.state.agents)
                assert await visit(job, recorded, hello(agent="thief"), prove=False) == []
        assert "thief" not in job.state.agents

    run(scenario)


def test_the_agent_of_another_job_is_told_why():
    async def scenario(job):
        workers = await job.start()
        (end,) = await visit(job, hello(agent="x", job_digest="e" * 64))
        assert isinstance(end, m.End) and end.exit_code == 2 and "another job file" in end.reason
        assert (await job.finish(workers)).exit_code == ExitCode.DONE

    run(scenario)


def test_a_link_with_the_wrong_token_says_that_it_is_wrong():
    async def scenario(job):
        with pytest.raises(TokenRefused, match="does not accept this token"):
            await Link(Address("127.0.0.1", job.address.port, auth.new_token())).open(HELLO)

    run(scenario)


@pytest.mark.parametrize("proof", ["", "0" * 64, "reflected", '{"type": "end", "exit_code": 0}'])
def test_whoever_listens_in_the_coordinators_place_gives_no_orders(proof):
    async def scenario():
        async def impostor(request):
            socket = web.WebSocketResponse()
            await socket.prepare(request)
            await socket.send_str(auth.challenge())
            answer = await socket.receive_str()
            await socket.send_str(answer.partition(":")[2] if proof == "reflected" else proof)
            await socket.send_str(m.encode(m.End(exit_code=0, reason="go home")))
            await socket.receive()
            return socket

        app = web.Application()
        app.router.add_get("/ws", impostor)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        with pytest.raises(EnvironmentNotReady, match="does not know the job's token"):
            await Link(Address("127.0.0.1", runner.addresses[0][1], TOKEN)).open(HELLO)
        await runner.cleanup()

    asyncio.run(asyncio.wait_for(scenario(), 10))


def test_no_coordinator_there():
    async def scenario():
        with pytest.raises(EnvironmentNotReady, match="cannot be reached"):
            await Link(Address("127.0.0.1", 1, TOKEN)).open(HELLO)

    asyncio.run(scenario())


@pytest.mark.parametrize("rudeness", ["reset", "half a request", "not http", "a body without end", "another page"])
def test_connections_that_break_off(rudeness):
    async def scenario(job):
        workers = await job.start()
        _, writer = await asyncio.open_connection("127.0.0.1", job.address.port)
        if rudeness == "reset":
            writer.write(b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                         b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n")
            sock = writer.get_extra_info("socket")
            sock.setsockopt(1, 13, struct.pack("ii", 1, 0))  # SO_LINGER 0: closing resets
        else:
            writer.write({"half a request": b"GET /ws HTTP", "not http": BOMB * 100,
                          "a body without end": b"GET /ws HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\nxxx",
                          "another page": b"GET /../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n"}[rudeness])
        writer.close()
        await asyncio.sleep(0.02)
        assert (await job.finish(workers)).exit_code == ExitCode.DONE

    run(scenario)


@pytest.mark.parametrize("message", [
    m.Exited(worker="w0", code=0, signal=9), m.StopAsked(signal=15), m.LoadFailed(exit_code=3, reason="r"),
    m.Scale(workers=1), m.Query(), *(m.Report(kind="event", step=1).model_copy(update={"name": name})
                                     for name in sorted(OWN_EVENTS))], ids=lambda x: getattr(x, "name", x.type))
def test_a_worker_that_says_what_it_may_not_loses_its_connection_only(message):
    async def scenario(job):
        first, second = await job.start()
        await second.say(message)
        assert await get(second.link) is None
        second.link = await job.link(m.WorkerHello(worker="w1", pid=second.pid, again=True))
        assert (await job.finish([first, second])).exit_code == ExitCode.DONE
        assert not job.watcher.named("worker_lost")

    run(scenario)


def test_an_agent_speaks_for_its_own_workers_only():
    async def scenario(job):
        workers = await job.start()
        other = await job.link(HELLO.model_copy(update={"agent": "other", "host": "other"}))
        await other.send(m.Exited(worker="w0", code=0, signal=9))
        await other.send(m.Exited(worker="w77", code=0, signal=9))
        await asyncio.sleep(0.02)
        assert job.state.workers["w0"].alive
        assert (await job.finish(workers)).exit_code == ExitCode.DONE

    run(scenario)


def test_words_about_a_round_that_is_not_ones_own_change_nothing():
    async def scenario(job):
        workers = await job.start()
        for message in (m.Formed(round=99, step=7, source="memory", known=900), m.Stepped(round=99, step=9)):
            await workers[0].say(message)
        cause = await job.finish(workers)
        await job.coordinator.close(cause)
        assert job.watcher.account["repeated_steps"] == 0 and not job.watcher.named("rollback")

    run(scenario)


def test_the_rendezvous_of_a_round_keeps_strange_bytes_as_they_are_and_not_too_many(caplog):
    async def scenario(job):
        job.agent = await job.link(HELLO)
        workers = [await job.hire() for _ in range(2)]
        for worker in workers:
            await worker.ready()
        seat = await workers[0].seated()
        async with aiohttp.ClientSession() as http:
            for value, status in ((BOMB, 200), (b"x" * (MAX_VALUE_BYTES + 1), 413)):
                async with http.put(f"{rendezvous(seat)}/global/7", data=value) as answer:
                    assert answer.status == status
            async with http.get(f"{rendezvous(seat)}/global/7") as answer:
                assert await answer.read() == BOMB
            false = rendezvous(seat.model_copy(update={"secret": auth.challenge()}))
            async with http.get(f"{false}/global/7") as answer:
                assert answer.status == 403
        await workers[1].seated()
        for worker in workers:
            await worker.form()
        assert (await job.finish(workers)).exit_code == ExitCode.DONE

    run(scenario)
    assert not exploded and "Traceback" not in caplog.text
