"""A worker's own account of its end counts, whichever of the two connections that tell of it is read first."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from hvtrain.control import lastwords, line, messages as m
from hvtrain.errors import ExitCode
from tests.support.control import LIMITS, expect, run, until

BOOM = m.Failed(exit_code=1, reason="ValueError: boom", traceback="Traceback boom", step=0)


async def agent_says_first(job, worker, *, code=1, signal=0):
    """The agent's word that the worker's process has ended has been heard."""
    await job.exited(worker, code=code, signal=signal)
    await job.agent.send(m.Notice(event="heard", text=worker.name))
    await until(lambda: ("heard", None, {"text": worker.name}) in job.watcher.events)


def test_who_raises_is_booked_as_that_when_its_agent_is_heard_first(monkeypatch):
    """Seen on a busy machine: the third worker that failed at a step was booked as one that "exited"."""
    monkeypatch.setattr(lastwords, "LAST_WORDS_SECONDS", 60.0)

    async def scenario(job):
        survivor, broken = await job.start()
        await agent_says_first(job, broken)
        assert job.state.workers["w1"].taking_part and not job.watcher.named("worker_lost")
        await broken.say(BOOM)
        await broken.link.close()
        cut = await expect(survivor.link, m.Cut)
        assert cut.reason == "rank 1: ValueError: boom"
        await until(lambda: "w1" not in job.state.workers)
        (lost,) = job.watcher.named("worker_lost")
        assert (lost["cause"], lost["reason"]) == ("raised", "rank 1: ValueError: boom")
        assert job.state.open_failure.traceback == "Traceback boom"

    run(scenario)


def test_each_failure_at_a_step_is_told_by_who_raised_and_the_job_ends_with_the_first_traceback(monkeypatch):
    """The story of elastic.max_failures_per_step with every agent's word too early."""
    monkeypatch.setattr(lastwords, "LAST_WORDS_SECONDS", 60.0)

    async def scenario(job):
        (broken,) = await job.start()
        for _ in range(3):
            await agent_says_first(job, broken)
            await broken.say(BOOM.model_copy(update={"step": 1}))
            await broken.link.close()
            broken = await job.hire()
            if broken.name != "w3":
                await broken.ready()
                await job.train([broken], step=1)
        await job.exited(broken, signal=9)
        cause = await job.over()
        assert (cause.exit_code, cause.traceback) == (1, "Traceback boom") and "failed 3 times" in cause.reason
        assert [lost["cause"] for lost in job.watcher.named("worker_lost")] == ["raised"] * 3

    run(scenario, wanted=1)


def test_who_fails_as_it_begins_is_heard_though_it_has_no_connection_yet(monkeypatch):
    """Its model cannot be built: it says so as soon as it is let in, and its agent is quicker than that."""
    monkeypatch.setattr(lastwords, "LAST_WORDS_SECONDS", 60.0)

    async def scenario(job):
        (survivor,) = await job.start()
        await job.ask(m.Scale(workers=2))
        assert (await expect(job.agent, m.Start)).worker == "w1"
        await job.agent.send(m.Exited(worker="w1", code=1, signal=0))
        await job.agent.send(m.Notice(event="heard", text="w1"))
        await until(lambda: ("heard", None, {"text": "w1"}) in job.watcher.events)
        link = await job.link(m.WorkerHello(worker="w1", pid=7))
        await link.send(BOOM)
        await link.close()
        (lost,) = await until(lambda: job.watcher.named("worker_lost"))
        assert lost["cause"] == "raised"

    run(scenario, wanted=1)


def test_who_says_nothing_is_booked_with_the_end_of_its_connection(monkeypatch):
    """os._exit(3) in a step: there is no account but the exit status."""
    monkeypatch.setattr(lastwords, "LAST_WORDS_SECONDS", 60.0)

    async def scenario(job):
        survivor, broken = await job.start()
        await agent_says_first(job, broken, code=3)
        assert not job.watcher.named("worker_lost")
        await broken.link.close()
        await expect(survivor.link, m.Cut)
        (lost,) = job.watcher.named("worker_lost")
        assert lost["cause"] == "exited" and "exit status 3" in lost["reason"]

    run(scenario)


def test_a_connection_that_has_ended_already_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(lastwords, "LAST_WORDS_SECONDS", 60.0)

    async def scenario(job):
        survivor, broken = await job.start()
        await broken.link.close()
        await until(lambda: not job.coordinator._door.knows("w1"))
        await job.exited(broken, code=3)
        assert "exit status 3" in (await expect(survivor.link, m.Cut)).reason

    run(scenario)


def test_a_connection_whose_end_never_comes_is_waited_for_a_short_time(monkeypatch):
    """A process that the worker has forked, a data loader say, holds it open."""
    monkeypatch.setattr(lastwords, "LAST_WORDS_SECONDS", 0.05)

    async def scenario(job):
        survivor, broken = await job.start()
        await job.exited(broken, code=3)
        assert "exit status 3" in (await expect(survivor.link, m.Cut)).reason
        assert job.coordinator._door.knows("w1")

    run(scenario)


def test_words_that_are_still_being_read_are_waited_for(monkeypatch):
    """A worker has said much, and a busy coordinator reads it one by one; its last word is the last of them."""
    monkeypatch.setattr(lastwords, "LAST_WORDS_SECONDS", 0.3)
    slow = line.Line.heard

    async def heard(self, size):
        await asyncio.sleep(0.1 if self.peer.kind == "worker" else 0)
        await slow(self, size)

    async def scenario(job):
        survivor, broken = await job.start()
        monkeypatch.setattr(line.Line, "heard", heard)
        for step in range(8):
            await broken.say(m.Report(kind="event", name="said", step=step))
        await broken.say(BOOM)
        await agent_says_first(job, broken)
        assert job.state.workers["w1"].taking_part
        await expect(survivor.link, m.Cut)
        assert [lost["cause"] for lost in job.watcher.named("worker_lost")] == ["raised"]

    run(scenario)


def test_a_coordinator_that_stood_still_reads_before_it_judges(monkeypatch):
    """Ctrl-Z, or a disk that did not answer: the wait was over before anything could be read."""
    monkeypatch.setattr(lastwords, "LAST_WORDS_SECONDS", 0.2)

    async def scenario(job):
        survivor, broken = await job.start()
        await agent_says_first(job, broken)
        await broken.say(BOOM)
        time.sleep(0.5)  # this event loop stands still
        await expect(survivor.link, m.Cut)
        assert [lost["cause"] for lost in job.watcher.named("worker_lost")] == ["raised"]

    run(scenario)


def test_a_connection_that_never_falls_silent_is_not_waited_for_without_end(monkeypatch):
    monkeypatch.setattr(lastwords, "LAST_WORDS_SECONDS", 0.02)

    async def scenario(job):
        survivor, broken = await job.start()
        await job.exited(broken, code=3)

        async def talk():
            while True:
                await broken.say(m.Beat())
                await asyncio.sleep(0.002)

        talking = asyncio.create_task(talk())
        try:
            assert "exit status 3" in (await expect(survivor.link, m.Cut)).reason
        finally:
            talking.cancel()

    run(scenario)


@pytest.mark.parametrize("number", [9, 11])
def test_who_was_ended_by_a_signal_is_booked_at_once(monkeypatch, number):
    """Nobody trains until then, and no last word is to come: not even the end of the connection is waited for."""
    monkeypatch.setattr(lastwords, "LAST_WORDS_SECONDS", 60.0)

    async def scenario(job):
        survivor, victim = await job.start()
        await job.exited(victim, signal=number)
        await expect(survivor.link, m.Cut)
        assert job.coordinator._door.knows("w1")

    run(scenario)


def test_a_worker_that_was_sent_home_is_gone_as_soon_as_its_agent_says_so(monkeypatch):
    """It has said Finished, which is its last word: the end of a job waits for nothing else."""
    monkeypatch.setattr(lastwords, "LAST_WORDS_SECONDS", 60.0)

    async def scenario(job):
        workers = await job.start()
        for worker in workers:
            await worker.say(m.Finished(step=5, summary={}))
        for worker in workers:
            await expect(worker.link, m.Dismiss)
            await worker.say(m.Finished(step=5, left=True))
            await job.exited(worker)
        assert (await job.over()).exit_code == ExitCode.DONE

    run(scenario)


def test_an_agent_that_goes_while_a_last_word_is_awaited_takes_its_worker_with_it(monkeypatch):
    """What is booked afterwards speaks of a worker that is not known any more."""
    monkeypatch.setattr(lastwords, "LAST_WORDS_SECONDS", 0.1)

    async def scenario(job):
        survivor, broken = await job.start()
        await agent_says_first(job, broken, code=3)
        await job.agent.close()
        await until(lambda: not job.state.workers)
        await asyncio.sleep(0.2)
        assert [lost["cause"] for lost in job.watcher.named("worker_lost")] == ["agent_lost"] * 2

    run(scenario, limits=replace(LIMITS, min_workers=1))
