"""``hvtrain run`` by itself: coordinator in this process, one agent with all slots on this host."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess

from hvtrain.control.causes import Cause
from hvtrain.control.client import Address
from hvtrain.control.coordinator import Coordinator
from hvtrain.control.events import JobFailed
from hvtrain.errors import ExitCode
from hvtrain.launch.agentstart import end_agent
from hvtrain.launch.joblaunch import JobLaunch, coordinate

WATCH_SECONDS = 0.2
"""How often it is looked whether the agent is still there."""


async def run(launch: JobLaunch, agent: subprocess.Popen) -> int:
    """Run a job on this host with a started ``agent``; returns its exit code."""
    watch: list[asyncio.Task] = []

    async def start(address: Address, coordinator: Coordinator) -> None:
        host = socket.gethostname()
        record = {"boot": launch.boot(address, launch.workers).to_json(), "name": host, "host": host,
                  "slots": launch.workers, "job_digest": launch.digest}
        assert agent.stdin is not None
        agent.stdin.write(json.dumps(record).encode())
        agent.stdin.close()
        watch.append(asyncio.create_task(_watch(agent, coordinator)))

    try:
        return await coordinate(launch, start)
    finally:
        for task in watch:
            task.cancel()
        await asyncio.to_thread(end_agent, agent)


async def _watch(agent: subprocess.Popen, coordinator: Coordinator) -> None:
    while (status := agent.poll()) is None:
        await asyncio.sleep(WATCH_SECONDS)
    coordinator.feed(JobFailed(Cause(int(ExitCode.LOST_WORKERS), f"the agent ended early with status {status}",
                                     weight=1)))
