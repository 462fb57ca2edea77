"""What a real coordinator does with the words of agents and workers made by hand: rounds, losses, resizes, ends."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import replace

import aiohttp
import pytest

from hvtrain.control import coordinator as module, messages as m
from hvtrain.control.client import ThreadedLink
from hvtrain.errors import ExitCode
from tests.support.control import HELLO, LIMITS, Watcher, expect, frozen, get, rendezvous, run, until


async def http_status(seat: m.Seat) -> int | None:
    """What the rendezvous of a round answers; None if nobody listens."""
    try:
        async with aiohttp.ClientSession() as http:
            async with http.get(f"http://{seat.rendezvous_host}:{seat.rendezvous_port}/global/0") as answer:
                return answer.status
    except aiohttp.ClientConnectionError:
        return None


# A job ---------------------------------------------------------------------------------------------------
def test_a_job_from_hello_to_end():
    async def scenario(job):
        workers = await job.start()
        assert [(w.name, w.seat.rank, w.seat.size, w.seat.local_rank, w.seat.fresh) for w in workers] == [
            ("w0", 0, 2, 0, True), ("w1", 1, 2, 1, True)]
        await workers[0].say(m.Report(kind="train", step=1, values={"loss": 0.5}))
        await workers[0].say(m.Report(kind="event", name="checkpoint", step=2, values={"path": "p", "step": 9}))
        cause = await job.finish(workers)
        assert (cause.exit_code, cause.reason) == (ExitCode.DONE, "done")
        await job.coordinator.close(cause)
        assert (await expect(job.agent, m.End)).exit_code == 0
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", job.address.port)
        assert job.watcher.outlines[0] == {"steps": 5, "parameters": 7, "samples": 9}
        assert job.watcher.measurements == [("train", 1, {"loss": 0.5})]
        assert ("checkpoint", 2, {"path": "p"}) in job.watcher.events
        assert {"steps": 5} in job.watcher.summaries
        assert job.watcher.strengths == [(1, 2)]
        assert (job.watcher.account["steps"], job.watcher.account["lost_workers"]) == (5, 0)

    run(scenario)


def test_every_round_has_a_rendezvous_of_its_own_which_ends_when_the_members_are_connected():
    async def scenario(job):
        job.agent = await job.link(HELLO)
        workers = [await job.hire() for _ in range(2)]
        for worker in workers:
            await worker.ready()
        seats = [await worker.seated() for worker in workers]
        assert seats[0].rendezvous_port == seats[1].rendezvous_port != job.address.port
        assert await http_status(seats[0]) == 404  # it is there, and empty
        await workers[0].form()
        assert await http_status(seats[0]) == 404  # the other one may still look for its peers
        await workers[1].form()
        await until(lambda: job.state.round.status.value == "active")
        assert await http_status(seats[0]) is None

    run(scenario)


def test_a_loss_while_a_round_is_forming_calls_its_rendezvous_off():
    """Who waits for the dead one's address must not sit out comm.timeout."""
    async def scenario(job):
        job.agent = await job.link(HELLO)
        workers = [await job.hire() for _ in range(2)]
        for worker in workers:
            await worker.ready()
        first, _ = [await worker.seated() for worker in workers]
        await job.exited(workers[1], signal=9)
        assert (await expect(workers[0].link, m.Cut)).round == 1
        async with aiohttp.ClientSession() as http:
            async with http.get(f"{rendezvous(first)}/global/1") as answer:
                assert (answer.status, await answer.read()) == (200, b"x")
        await workers[0].ready(round=1)
        successor = await job.hire()
        await successor.ready()
        seats = [await worker.seated() for worker in (workers[0], successor)]
        assert seats[0].rendezvous_port != first.rendezvous_port and await http_status(first) is None
        assert [seat.round for seat in seats] == [2, 2]

    run(scenario)


# Losses --------------------------------------------------------------------------------------------------
def test_a_lost_worker_is_replaced_and_the_others_are_told_to_come_back():
    async def scenario(job):
        survivor, victim, third = await job.start()
        await job.exited(victim, signal=9)
        for worker in (survivor, third):
            cut = await expect(worker.link, m.Cut)
            assert cut.round == 1 and "rank 1 on host was killed by SIGKILL" in cut.reason
        successor = await job.hire()
        assert successor.name == "w3"
        await successor.ready()
        for worker in (survivor, third):
            await worker.ready(step=7, round=1)
        seats = await job.train([survivor, successor, third], step=7)
        assert [(seat.round, seat.rank, seat.fresh) for seat in seats] == [(2, 0, False), (2, 1, False), (2, 2, False)]
        cause = await job.finish([survivor, successor, third], step=9)
        assert cause.exit_code == ExitCode.DONE
        (lost,) = job.watcher.named("worker_lost")
        assert (lost["rank"], lost["cause"], lost["host"], lost["job_goes_on"]) == (1, "killed", "host", True)
        assert job.watcher.strengths == [(1, 3), (1, 2), (2, 3)]
        (_, change) = job.watcher.named("round")
        assert (change["round"], change["size"], change["reason"], change["step"]) == (2, 3, "loss", 7)
        assert not job.watcher.named("resize")

    run(scenario, wanted=3)


def test_a_late_replacement_is_not_waited_for_and_joins_later():
    async def scenario(job):
        survivor, victim = await job.start()
        await job.exited(victim, signal=9)
        await expect(survivor.link, m.Cut)
        await survivor.ready(step=3, round=1)
        successor = await job.hire()
        await job.train([survivor], step=3)  # after elastic.replace_timeout
        assert survivor.seat.size == 1
        await successor.ready()
        assert (await expect(survivor.link, m.Pause)).round == 2
        await survivor.ready(step=5, round=2)
        await job.train([survivor, successor], step=5)
        assert [(e["old"], e["new"], e["step"]) for e in job.watcher.named("resize")] == [(2, 1, 3), (1, 2, 5)]
        await until(lambda: len(job.watcher.named("round")) == 3)
        assert [e["reason"] for e in job.watcher.named("round")] == ["start", "loss", "grow"]

    run(scenario)


def test_an_exception_of_a_worker_comes_to_the_end_with_its_traceback():
    async def scenario(job):
        first, second = await job.start()
        await first.say(m.Beat(step=3))
        await until(lambda: job.state.workers["w0"].step == 3)
        await second.say(m.Failed(exit_code=2, reason="ValueError: boom", traceback="Traceback boom", step=3))
        assert (await expect(first.link, m.Dismiss)).salvage
        await first.say(m.Failed(exit_code=144, reason="lost", lost_peer=True, saved_step=3))
        for worker in (first, second):
            await job.exited(worker, code=1)
        cause = await job.over()
        assert (cause.exit_code, cause.reason, cause.traceback, cause.rank) == (
            2, "rank 1: ValueError: boom", "Traceback boom", 1)
        assert ("checkpoint", 3, {"text": "saved by a survivor"}) in job.watcher.events

    run(scenario)


def test_an_agent_that_goes_takes_its_workers_with_it():
    async def scenario(job):
        (mine,) = await job.start()
        other = await job.link(HELLO.model_copy(update={"agent": "other", "host": "other"}))
        await until(lambda: "other" in job.state.agents)
        await job.agent.close()
        await expect(mine.link, m.Dismiss)
        order = await expect(other, m.Start)
        assert order.worker == "w1" and "host" not in job.state.agents
        (lost,) = job.watcher.named("worker_lost")
        assert lost["cause"] == "agent_lost" and "host" in lost["reason"]
        assert job.dropped == ["host"]

    run(scenario, wanted=1)


def test_an_agent_that_comes_back_begins_anew():
    async def scenario(job):
        await job.start()
        await job.agent.close()
        await until(lambda: not job.state.agents)
        job.agent = await job.link(HELLO)
        assert [(await job.hire()).name for _ in range(2)] == ["w2", "w3"]

    run(scenario)


def test_an_agent_that_is_back_before_its_loss_was_dealt_with_keeps_its_new_connection():
    """A busy coordinator cut that one instead of the old one. What it then told the agent to start, nobody heard of: the
    job stood still for launch.start_timeout."""
    async def scenario(job):
        await job.start()
        take, busy = job.coordinator._take, asyncio.Event()

        async def late(event):
            await busy.wait()
            await take(event)

        job.coordinator._take = late
        await job.agent.close()
        await until(lambda: not job.coordinator._door.knows("host"))
        job.agent = await job.link(HELLO)
        busy.set()
        assert [(await job.hire()).name for _ in range(2)] == ["w2", "w3"]
        assert job.coordinator.agents() == ("host",) and not job.dropped
        assert {lost["cause"] for lost in job.watcher.named("worker_lost")} == {"agent_lost"}
        (found,) = await job.ask(m.Query())
        assert [agent["pid"] for agent in found.agents] == [1]

    run(scenario)


def test_a_frozen_agent_is_dropped_and_holds_nobody_up():
    """It neither reads nor answers a good-bye; the coordinator must not wait for that."""
    async def scenario(job):
        job.agent = await job.link(HELLO)
        began = time.monotonic()
        with frozen(job.agent):
            await until(lambda: job.dropped == ["host"])
            other = await job.link(HELLO.model_copy(update={"agent": "other"}))
            await expect(other, m.Start)
        assert time.monotonic() - began < 1.5

    run(scenario, limits=replace(LIMITS, heartbeat=0.3), wanted=1)


# Connections ---------------------------------------------------------------------------------------------
def test_a_worker_that_has_lost_its_connection_comes_back():
    async def scenario(job):
        first, second = await job.start()
        await second.link.close()
        second.link = await job.link(m.WorkerHello(worker="w1", pid=second.pid, again=True))
        await job.agent.send(m.StopAsked(signal=2))
        for worker in (first, second):
            assert (await expect(worker.link, m.Stop)).signal == 2
        assert (await job.finish([first, second], stopped=True)).exit_code == ExitCode.INTERRUPTED
        assert not job.watcher.named("worker_lost")

    run(scenario)


def test_a_connection_that_nobody_saw_break_is_replaced_at_once():
    """The network path was dead for a while: the old connection is still open on this side."""
    async def scenario(job):
        first, second = await job.start()
        began = time.monotonic()
        with frozen(second.link):
            second.link = await job.link(m.WorkerHello(worker="w1", pid=second.pid, again=True))
            await second.say(m.Ready(step=1, round=1))  # a seat may have been lost
            assert (await expect(second.link, m.Cut)).round == 1
        assert time.monotonic() - began < 1.0

    run(scenario)


def test_a_frozen_coordinator_does_not_blame_the_workers():
    """After Ctrl-Z and fg the signs of life lie unread; they must be read before anyone is judged."""
    async def scenario(job):
        job.agent = await job.link(HELLO)

        async def agent_beats():
            while True:
                await job.agent.send(m.Beat())
                await asyncio.sleep(0.02)

        beating, links = asyncio.create_task(agent_beats()), []
        try:
            for _ in range(2):
                order = await expect(job.agent, m.Start)
                links.append(ThreadedLink(
                    job.address, lambda again, name=order.worker: m.WorkerHello(worker=name, pid=1, again=again),
                    on_message=lambda _: None, on_back=lambda: None, on_lost=lambda: None, beat=lambda: m.Beat(step=1),
                    beat_seconds=0.02, patience=0.0))
                await asyncio.to_thread(links[-1].open)
                links[-1].post(m.Ready())
            await until(lambda: job.state.round.number == 1)
            time.sleep(0.7)  # this event loop stands still, the links' threads do not
            await asyncio.sleep(0.3)
            assert all(worker.alive for worker in job.state.workers.values()) and job.state.round.number == 1
            assert not job.watcher.named("worker_lost")
        finally:
            beating.cancel()
            for link in links:
                await asyncio.to_thread(link.close)

    run(scenario, limits=replace(LIMITS, heartbeat=0.5))


# Stopping, leaving, resizing ---------------------------------------------------------------------------
def test_a_stop_is_passed_on():
    async def scenario(job):
        workers = await job.start()
        job.coordinator.request_stop(15)
        for worker in workers:
            assert await get(worker.link) == m.Stop(signal=15)
        assert (await job.finish(workers, stopped=True)).exit_code == ExitCode.TERMINATED
        assert job.watcher.named("stop_requested") == [{"step": None, "signal": 15}]

    run(scenario)


def test_a_worker_that_wants_to_leave_is_replaced_and_sent_home():
    async def scenario(job):
        stays, leaves = await job.start()
        await leaves.say(m.Leaving())
        successor = await job.hire()
        await successor.ready()
        for worker in (stays, leaves):
            assert (await expect(worker.link, m.Pause)).round == 1
            await worker.ready(step=4, round=1)
        await job.train([stays, successor], step=4)
        assert not (await expect(leaves.link, m.Dismiss)).salvage, "not before others have its state"
        await leaves.say(m.Finished(step=4, left=True))
        await job.exited(leaves)
        assert (await job.finish([stays, successor])).exit_code == ExitCode.DONE
        assert not job.watcher.named("worker_lost") and job.watcher.named("round")[1]["reason"] == "leave"

    run(scenario)


def test_scaling_up_and_down():
    async def scenario(job):
        (first,) = await job.start()
        (answer,) = await job.ask(m.Scale(workers=2))
        assert answer == m.Answer(accepted=True, text="from 1 to 2 workers")
        second = await job.hire()
        await second.ready()
        await expect(first.link, m.Pause)
        await first.ready(step=2, round=1)
        await job.train([first, second], step=2)
        (answer,) = await job.ask(m.Scale(workers=1))
        assert answer.accepted
        for worker in (first, second):
            assert (await expect(worker.link, m.Pause)).round == 2
            await worker.ready(step=3, round=2)
        await job.train([first], step=3)
        await expect(second.link, m.Dismiss)
        assert [(e["old"], e["new"]) for e in job.watcher.named("resize")] == [(1, 2), (2, 1)]

    run(scenario, wanted=1)


def test_what_cannot_be_is_refused_with_the_reason():
    async def scenario(job):
        await job.start()
        too_many, too_few, slots = await job.ask(m.Scale(workers=5), m.Scale(workers=1), m.Scale(workers=4))
        assert not too_many.accepted and "elastic.max_workers (4)" in too_many.text
        assert not too_few.accepted and "elastic.min_workers (2)" in too_few.text
        assert slots.accepted

    run(scenario, limits=replace(LIMITS, min_workers=2, max_workers=4))


def test_a_person_asks_who_is_there():
    async def scenario(job):
        workers = await job.start()
        await workers[1].say(m.Beat(step=3, ticks=3))
        await until(lambda: job.state.workers["w1"].step == 3)
        (found,) = await job.ask(m.Query())
        assert found.agents == [{"agent": "host", "host": "host", "slots": 4, "pid": 1, "workers": 2, "state": "here"}]
        rows = [(w["worker"], w["pid"], w["rank"], w["slot"], w["round"], w["step"], w["state"]) for w in found.workers]
        assert rows == [
            ("w0", 100, 0, 0, 1, 0, "training"), ("w1", 101, 1, 1, 1, 3, "training")]
        assert (found.job["round"], found.job["size"], found.job["target"], found.job["step"]) == (1, 2, 2, 3)

    run(scenario)


def test_members_and_signals_for_fault_plans():
    async def scenario(job):
        assert job.coordinator.members() == []
        first, second = await job.start()
        assert [(member["worker"], member["rank"], member["pid"], member["round"])
                for member in job.coordinator.members()] == [("w0", 0, 100, 1), ("w1", 1, 101, 1)]
        await job.coordinator.signal("w1", 19)
        assert await get(job.agent) == m.Kill(worker="w1", signal=19)
        await job.exited(second, signal=9)
        await expect(first.link, m.Cut)
        assert [member["worker"] for member in job.coordinator.members()] == ["w0"]

    run(scenario)


# Trouble inside ------------------------------------------------------------------------------------------
def test_a_measurement_that_is_no_number_arrives():
    async def scenario(job):
        workers = await job.start()
        await workers[0].say(m.Report(kind="eval", step=1, values={"loss": math.nan}))
        await job.finish(workers)
        assert math.isnan(job.watcher.measurements[0][2]["loss"])

    run(scenario)


def test_a_full_disk_under_the_run_directory_is_the_reason_that_is_given():
    async def scenario(job):
        workers = await job.start()
        await workers[0].say(m.Report(kind="train", step=1, values={"loss": 1.0}))
        for worker in workers:
            await expect(worker.link, m.Dismiss)
            await job.exited(worker, code=1)
        cause = await job.over()
        assert cause.exit_code == ExitCode.ENVIRONMENT and "No space left" in cause.reason

    run(scenario, watcher=Watcher(fail=True))


def test_a_bug_in_the_coordinator_ends_the_job_instead_of_hanging_it(monkeypatch):
    async def scenario(job):
        def broken(*_):
            raise ZeroDivisionError("bug")

        monkeypatch.setattr(module.membership, "step", broken)
        job.coordinator.request_stop(15)
        cause = await job.over()
        assert cause.exit_code == ExitCode.ENVIRONMENT and "bug" in cause.reason

    run(scenario)
