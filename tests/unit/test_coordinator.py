"""A real coordinator on the loopback, with agents and workers made by hand: what it does, whom it refuses."""

from __future__ import annotations

import asyncio
import math
import struct
import time

import aiohttp
import pytest

from hvtrain.control import auth, coordinator as module, messages as m
from hvtrain.control.client import Address, Link, ThreadedLink
from hvtrain.control.coordinator import Coordinator
from hvtrain.control.membership import Limits
from hvtrain.errors import EnvironmentNotReady, ExitCode

TOKEN, DIGEST = auth.new_token(), "d" * 64
LIMITS = Limits(start=10.0, stop=5.0, heartbeat=5.0, verdict=0.2)
HELLO = m.AgentHello(agent="host", host="host", slots=2, pid=1, version="0", job_digest=DIGEST)


class Watcher:
    """An observer that remembers."""

    def __init__(self, fail=False):
        self.events, self.measurements, self.summaries, self.outlines, self.fail = [], [], [], [], fail

    def event(self, name, step=None, **values): self.events.append((name, step, values))
    def outline(self, outline): self.outlines.append(outline)
    def summary(self, summary): self.summaries.append(summary)

    def measured(self, kind, step, epoch, values):
        if self.fail:
            raise OSError(28, "No space left on device")
        self.measurements.append((kind, step, values))


class Job:
    """A running coordinator with one agent, "host", and the links of its workers."""

    def __init__(self, watcher=None, limits=LIMITS):
        self.watcher, self.limits, self.links, self.rank = watcher or Watcher(), limits, [], {}

    async def __aenter__(self):
        self.coordinator = Coordinator(wanted=2, limits=self.limits, token=TOKEN, host="127.0.0.1", interface="lo",
                                       job_digest=DIGEST, observer=self.watcher)
        port = await self.coordinator.start()
        self.address = Address("127.0.0.1", port, TOKEN)
        return self

    async def __aexit__(self, *_):
        for link in self.links:
            await link.close()
        await self.coordinator.close(module.Cause(0, "test is over"))

    async def link(self, hello):
        link = Link(self.address)
        self.links.append(link)
        await link.open(hello)
        return link

    async def start(self):
        """Agent and workers are there, each worker has its seat."""
        self.agent = await self.link(HELLO)
        self.orders = [await get(self.agent) for _ in range(2)]
        self.workers = [await self.link(m.WorkerHello(worker=order.worker, pid=2)) for order in self.orders]
        for worker in self.workers:
            await worker.send(m.Ready(outline={"steps": 5}))
        self.seats = [await get(worker) for worker in self.workers]
        return self

    async def finish(self):
        """Let the job end well; returns the cause."""
        for order, worker in zip(self.orders, self.workers):
            await worker.send(m.Finished(step=5, summary={"steps": 5} if order.rank == 0 else {}))
            await worker.close()
            await self.agent.send(m.Exited(worker=order.worker, code=0, signal=0))
        return await asyncio.wait_for(self.coordinator.wait(), 3)


async def get(link):
    return await asyncio.wait_for(link.receive(), 3)


def run(scenario, **kwargs):
    async def main():
        async with Job(**kwargs) as job:
            return await scenario(job)

    return asyncio.run(asyncio.wait_for(main(), 20))


def test_a_job_from_hello_to_end():
    async def scenario(job):
        await job.start()
        assert [(o.worker, o.rank) for o in job.orders] == [("w0", 0), ("w1", 1)]
        assert [(s.rank, s.size, s.local_rank) for s in job.seats] == [(0, 2, 0), (1, 2, 1)]
        seat = job.seats[0]
        async with aiohttp.ClientSession() as http:  # its rendezvous is there
            async with http.get(f"http://{seat.rendezvous_host}:{seat.rendezvous_port}/global/0") as answer:
                assert answer.status == 404
        await job.workers[0].send(m.Report(kind="train", step=1, values={"loss": 0.5}))
        await job.workers[0].send(m.Report(kind="event", name="checkpoint", step=2, values={"path": "p", "step": 9}))
        cause = await job.finish()
        assert (cause.exit_code, cause.reason) == (ExitCode.DONE, "done")
        assert job.watcher.measurements == [("train", 1, {"loss": 0.5})]
        assert ("checkpoint", 2, {"path": "p"}) in job.watcher.events
        assert {"steps": 5} in job.watcher.summaries
        await job.coordinator.close(cause)
        end = await get(job.agent)
        assert isinstance(end, m.End) and end.exit_code == 0
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", job.address.port)

    run(scenario)


def test_an_exception_reaches_the_end_with_its_traceback_and_the_peer_is_cut():
    async def scenario(job):
        await job.start()
        await job.workers[1].send(m.Failed(exit_code=1, reason="ValueError: boom", traceback="Traceback boom", step=3))
        cut = await get(job.workers[0])
        assert isinstance(cut, m.Cut) and cut.salvage
        await job.workers[0].send(m.Failed(exit_code=144, reason="lost", lost_peer=True, saved_step=3))
        for worker in ("w0", "w1"):
            await job.agent.send(m.Exited(worker=worker, code=1, signal=0))
        cause = await asyncio.wait_for(job.coordinator.wait(), 3)
        assert (cause.exit_code, cause.reason, cause.traceback, cause.rank) == (
            1, "rank 1: ValueError: boom", "Traceback boom", 1)

    run(scenario)


def test_a_stop_is_passed_on():
    async def scenario(job):
        await job.start()
        await job.agent.send(m.StopAsked(signal=15))
        assert [await get(worker) for worker in job.workers] == [m.Stop(signal=15)] * 2
        assert (await job.finish()).exit_code == ExitCode.TERMINATED

    run(scenario)


def test_an_agent_that_goes_ends_the_job():
    async def scenario(job):
        await job.start()
        await job.agent.close()
        cause = await asyncio.wait_for(job.coordinator.wait(), 3)
        assert cause.exit_code == ExitCode.LOST_WORKERS and "the agent host" in cause.reason

    run(scenario)


# Strangers -----------------------------------------------------------------------------------------------
async def raw(job, *frames, answer=True, expect_closed=True):
    """Connect by hand, answer the challenge (or not), send frames; returns how the server closed."""
    async with aiohttp.ClientSession() as http:
        async with http.ws_connect(f"http://127.0.0.1:{job.address.port}/ws", max_msg_size=1 << 24) as ws:
            nonce = await ws.receive_str()
            if answer:
                await ws.send_str(auth.answer(TOKEN, nonce))
            for frame in frames:
                await (ws.send_bytes(frame) if isinstance(frame, bytes) else ws.send_str(frame))
            said = []
            while expect_closed:
                reply = await asyncio.wait_for(ws.receive(), 3)
                if reply.type is not aiohttp.WSMsgType.TEXT:
                    assert reply.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSING)
                    return said
                said.append(m.decode_outbound(reply.data))


def hello(**changes):
    return m.encode(HELLO.model_copy(update=changes))


WORKER = m.encode(m.WorkerHello(worker="w0", pid=1))
STRANGERS = {
    "wrong token": lambda job: raw(job, auth.answer(auth.new_token(), auth.challenge()), hello(agent="x"), answer=False),
    "no proof at all": lambda job: raw(job, hello(agent="x"), answer=False),
    "a replayed answer": lambda job: raw(job, auth.answer(TOKEN, auth.challenge()), hello(agent="x"), answer=False),
    "a binary answer": lambda job: raw(job, b"\x80\x04\x95", answer=False),
    "garbage": lambda job: raw(job, "}{"),
    "a pickle": lambda job: raw(job, b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94."),
    "binary after hello": lambda job: raw(job, hello(agent="x"), b"\x00\x01"),
    "oversized before proof": lambda job: raw(job, "x" * (m.MAX_BYTES + 10), answer=False),
    "oversized hello": lambda job: raw(job, "x" * (m.MAX_BYTES + 10)),
    "not a hello": lambda job: raw(job, m.encode(m.Beat(step=1))),
    "an unknown worker": lambda job: raw(job, m.encode(m.WorkerHello(worker="w9", pid=1))),
    "a worker that is there already": lambda job: raw(job, WORKER),
    "a second agent of that name": lambda job: raw(job, hello()),
    "an order for an agent": lambda job: raw(job, m.encode(m.Kill(worker="w0"))),
}


@pytest.mark.parametrize("stranger", STRANGERS.values(), ids=STRANGERS)
def test_strangers_are_refused_and_harm_nobody(stranger, caplog):
    async def scenario(job):
        await job.start()
        before = job.coordinator._state.agents.keys()
        assert await stranger(job) == []
        await asyncio.sleep(0.02)
        assert job.coordinator._state.agents.keys() <= before | {"x"}
        assert (await job.finish()).exit_code == ExitCode.DONE

    run(scenario)
    assert TOKEN not in caplog.text
    assert "refused a connection from 127.0.0.1" in caplog.text


def test_the_agent_of_another_job_is_told_why():
    async def scenario(job):
        await job.start()
        (end,) = await raw(job, hello(agent="x", job_digest="e" * 64))
        assert isinstance(end, m.End) and end.exit_code == 2 and "another job file" in end.reason
        assert (await job.finish()).exit_code == ExitCode.DONE

    run(scenario)


def test_a_link_with_the_wrong_token_says_that_it_cannot_connect():
    async def scenario(job):
        link = Link(Address("127.0.0.1", job.address.port, auth.new_token()))
        await link.open(HELLO)  # the refusal comes as the end of the connection
        assert await get(link) is None
        await link.close()

    run(scenario)


def test_no_coordinator_there():
    async def scenario():
        with pytest.raises(EnvironmentNotReady, match="cannot be reached"):
            await Link(Address("127.0.0.1", 1, TOKEN)).open(HELLO)

    asyncio.run(scenario())


def test_a_silent_connection_is_closed(monkeypatch):
    monkeypatch.setattr(module, "AUTH_SECONDS", 0.05)

    async def scenario(job):
        assert await raw(job, answer=False) == []

    run(scenario)


@pytest.mark.parametrize("rudeness", ["reset", "half a request", "not http"])
def test_connections_that_break_off(rudeness):
    async def scenario(job):
        await job.start()
        reader, writer = await asyncio.open_connection("127.0.0.1", job.address.port)
        if rudeness == "reset":
            writer.write(b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                         b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n")
            sock = writer.get_extra_info("socket")
            sock.setsockopt(1, 13, struct.pack("ii", 1, 0))  # SO_LINGER 0: closing resets
        else:
            writer.write(b"GET /ws HTTP" if rudeness == "half a request" else b"\x80\x04\x95" * 100)
        writer.close()
        await asyncio.sleep(0.02)
        assert (await job.finish()).exit_code == ExitCode.DONE

    run(scenario)


@pytest.mark.parametrize("message", [m.Exited(worker="w0", code=0, signal=9), m.StopAsked(signal=15),
                                     m.LoadFailed(exit_code=3, reason="r")])
def test_a_worker_that_pretends_to_be_an_agent_loses_its_connection_only(message):
    async def scenario(job):
        await job.start()
        await job.workers[1].send(message)
        assert await get(job.workers[1]) is None
        assert job.coordinator._state.cause is None and not job.coordinator._state.workers["w0"].gone
        await job.agent.send(m.Exited(worker="w1", code=144, signal=0))
        assert isinstance(await get(job.workers[0]), m.Cut)

    run(scenario)


def test_an_agent_speaks_for_its_own_workers_only():
    async def scenario(job):
        await job.start()
        other = await job.link(HELLO.model_copy(update={"agent": "other", "host": "other"}))
        await other.send(m.Exited(worker="w0", code=0, signal=9))
        await asyncio.sleep(0.02)
        assert not job.coordinator._state.workers["w0"].gone
        assert (await job.finish()).exit_code == ExitCode.DONE

    run(scenario)


# Trouble inside -----------------------------------------------------------------------------------------
def test_a_measurement_that_is_no_number_arrives():
    async def scenario(job):
        await job.start()
        await job.workers[0].send(m.Report(kind="eval", step=1, values={"loss": math.nan}))
        assert (await job.finish()).exit_code == ExitCode.DONE
        assert math.isnan(job.watcher.measurements[0][2]["loss"])

    run(scenario)


def test_a_full_disk_under_the_run_directory_is_the_reason_that_is_given():
    async def scenario(job):
        await job.start()
        await job.workers[0].send(m.Report(kind="train", step=1, values={"loss": 1.0}))
        assert isinstance(await get(job.workers[0]), m.Cut)
        for worker in ("w0", "w1"):
            await job.agent.send(m.Exited(worker=worker, code=1, signal=0))
        cause = await asyncio.wait_for(job.coordinator.wait(), 3)
        assert cause.exit_code == ExitCode.ENVIRONMENT and "No space left" in cause.reason

    run(scenario, watcher=Watcher(fail=True))


def test_a_bug_in_the_coordinator_ends_the_job_instead_of_hanging_it(monkeypatch):
    async def scenario(job):
        def broken(*_):
            raise ZeroDivisionError("bug")

        monkeypatch.setattr(module.membership, "step", broken)
        job.coordinator.request_stop(15)
        cause = await asyncio.wait_for(job.coordinator.wait(), 3)
        assert cause.exit_code == ExitCode.ENVIRONMENT and "bug" in cause.reason

    run(scenario)


def test_a_coordinator_that_was_stopped_itself_does_not_blame_the_workers():
    """After Ctrl-Z and fg the workers' signs of life lie unread; they must be read before anyone is judged."""
    limits = Limits(start=10.0, stop=5.0, heartbeat=0.3, verdict=0.2)

    async def scenario(job):
        job.agent = await job.link(HELLO)
        links = []
        try:
            for name in ("w0", "w1"):
                await get(job.agent)
                links.append(ThreadedLink(job.address, m.WorkerHello(worker=name, pid=1), on_message=lambda _: None,
                                          on_lost=lambda: None, beat=lambda: m.Beat(step=1), beat_seconds=0.02))
                await asyncio.to_thread(links[-1].open)
                links[-1].post(m.Ready(outline={}))
            while job.coordinator._state.phase is not module.Phase.RUNNING:
                await asyncio.sleep(0.01)
            time.sleep(0.6)  # the event loop stands still, the links' threads do not
            await asyncio.sleep(0.1)
            assert job.coordinator._state.cause is None
        finally:
            for link in links:
                await asyncio.to_thread(link.close)

    run(scenario, limits=limits)
