"""What agents and people are told when the others cannot reach a newcomer."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from hvtrain.config import Job
from hvtrain.control import messages as m
from hvtrain.control.agent import Agent
from hvtrain.control.boot import Boot
from hvtrain.errors import ExitCode
from hvtrain.report import wording
from tests.support.control import DIGEST, HELLO, LIMITS, Worker, expect, run, until


def test_a_newcomer_that_is_not_reached_is_told_so_and_so_are_people():
    async def scenario(job):
        workers = await job.start()
        stranger = await job.link(HELLO.model_copy(update={"agent": "joined@h3", "host": "h3", "slots": 1}))
        order = await expect(stranger, m.Start)
        newcomer = Worker(order.worker, await job.link(m.WorkerHello(worker=order.worker, pid=7)), 7)
        await newcomer.ready()
        for worker in workers:
            await expect(worker.link, m.Pause)
            await worker.ready(step=2, round=1)
        for attempt in range(2, 5):
            for worker in (*workers, newcomer):
                await worker.seated()
            await newcomer.say(m.Ready(step=-1, round=attempt, reason="connect [10.0.0.9]:4711: No route to host"))
            for worker in workers:
                await expect(worker.link, m.Cut)
                await worker.ready(step=2, round=attempt)
            if attempt < 4:
                await expect(newcomer.link, m.Cut)
        dismissed, refused = await expect(newcomer.link, m.Dismiss), await expect(stranger, m.Refused)
        assert dismissed.reason == refused.reason and "No route to host" in refused.reason
        await job.train(workers, step=2)
        (told,) = job.watcher.named("left_out")
        assert (told["host"], told["reason"], told["again"]) == ("h3", refused.reason, False)
        (found,) = await job.ask(m.Query())
        assert [agent["state"] for agent in found.agents] == ["here", "refused"]
        assert wording.line("left_out", 2, told).startswith("warning: step 2: a new worker on h3 and those that train")

    run(scenario, follow=True, slots=2, limits=replace(LIMITS, form=1.5))  # so long before the third attempt


@pytest.mark.parametrize("volunteer", [True, False])
def test_an_agent_that_a_person_has_added_ends_with_the_reason_and_a_launchers_stands_by(volunteer):
    """mpirun and srun end all tasks when one of them fails."""
    async def scenario(job):
        boot = Boot(job=Job.model_validate({"task": {"target": "a:B"}}), coordinator=job.address, module_dir=".",
                    run_dir=".", threads=1)
        agent = Agent(boot, None, name="joined@h3", host="h3", slots=0, job_digest=DIGEST, volunteer=volunteer)
        serving = asyncio.create_task(agent.run())
        await until(lambda: "joined@h3" in job.state.agents)
        await job.coordinator._door.send("joined@h3", m.Refused(reason="h1 and h3 could not connect"))
        if volunteer:
            assert await asyncio.wait_for(serving, 3) == ExitCode.ENVIRONMENT and not agent.forsaken
            assert agent.reason == "h1 and h3 could not connect"
        else:
            await job.coordinator._door.send("joined@h3", m.End(exit_code=0, reason="done"))
            assert await asyncio.wait_for(serving, 3) == 0 and agent.reason == "done"

    run(scenario)
