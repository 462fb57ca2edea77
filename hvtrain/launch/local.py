"""``hvtrain run`` by itself: coordinator in this process, one agent with all slots on this host."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys

from hvtrain.control.causes import Cause
from hvtrain.control.client import Address
from hvtrain.control.coordinator import Coordinator
from hvtrain.control.membership import JobFailed
from hvtrain.errors import ExitCode
from hvtrain.launch.joblaunch import JobLaunch, coordinate

END_SECONDS = 10.0
"""How long the agent may take to end after the job; then it is killed, and the kernel ends its children."""


async def run(launch: JobLaunch) -> int:
    """Run a job on this host; returns its exit code."""
    agents: list[asyncio.subprocess.Process] = []
    watch: list[asyncio.Task] = []

    async def start(address: Address, coordinator: Coordinator) -> None:
        # A session of its own keeps the terminal's Ctrl-C to the launcher, which stops the job in order.
        agent = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "hvtrain.control.agent", str(os.getpid()), stdin=subprocess.PIPE,
            start_new_session=True)
        agents.append(agent)
        host = socket.gethostname()
        record = {"boot": launch.boot(address, launch.workers).to_json(), "name": host, "host": host,
                  "slots": launch.workers, "job_digest": launch.digest}
        assert agent.stdin is not None
        agent.stdin.write(json.dumps(record).encode())
        await agent.stdin.drain()
        agent.stdin.close()
        watch.append(asyncio.create_task(_watch(agent, coordinator)))

    try:
        return await coordinate(launch, start)
    finally:
        for task in watch:
            task.cancel()
        for agent in agents:
            await _end(agent)


async def _watch(agent: asyncio.subprocess.Process, coordinator: Coordinator) -> None:
    status = await agent.wait()
    coordinator.feed(JobFailed(Cause(int(ExitCode.LOST_WORKERS), f"the agent ended early with status {status}",
                                     weight=1)))


async def _end(agent: asyncio.subprocess.Process) -> None:
    try:
        await asyncio.wait_for(agent.wait(), END_SECONDS)
    except asyncio.TimeoutError:
        agent.kill()
        await agent.wait()
