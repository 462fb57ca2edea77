"""``hvtrain run`` by itself: coordinator in this process, one agent with all slots on this host.

Where it listens on more than the loopback interface, agents from elsewhere may bring more (``hvtrain agent``).
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess

from hvtrain.control.client import Address
from hvtrain.control.coordinator import Coordinator
from hvtrain.control.events import AgentLost
from hvtrain.launch import network
from hvtrain.launch.agentstart import end_agent, start_agent
from hvtrain.launch.joblaunch import JobLaunch, coordinate

WATCH_SECONDS = 0.05
"""How often it is looked whether the agent is still there."""

UNBOUNDED_SLOTS = 1024
"""A person may ask for as many workers on this host, where elastic.max_workers sets no bound."""


class HostAgent:
    """This host's agent process; one that is lost is replaced, and the job goes on from its last checkpoint."""

    def __init__(self, launch: JobLaunch, first: subprocess.Popen):
        self._launch, self._process = launch, first
        self._host = socket.gethostname()
        self._name = f"agent@{self._host}"  # no worker's name looks like that, whatever the host is called
        self._watching: asyncio.Task | None = None

    async def start(self, address: Address, coordinator: Coordinator) -> None:
        """Tell the waiting agent what job it is for, and watch over it."""
        self._address = address
        self._hand_over()
        self._watching = asyncio.create_task(self._watch(coordinator))

    def drop(self, name: str) -> None:
        """The coordinator has given an agent up: if it is this host's, end it, so that another one can take its place."""
        if name == self._name:
            self._process.kill()

    async def end(self) -> None:
        """End the agent with the job."""
        if self._watching is not None:
            self._watching.cancel()
        await asyncio.to_thread(end_agent, self._process)

    def _hand_over(self) -> None:
        job, workers = self._launch.job, self._launch.slots or self._launch.workers
        slots = workers if is_open(self._launch) else max(workers, job.elastic.max_workers or UNBOUNDED_SLOTS)
        slots += job.elastic.spares
        record = {"boot": self._launch.boot(self._address, workers).to_json(), "name": self._name, "host": self._host,
                  "slots": slots, "job_digest": self._launch.digest}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(record).encode())
        self._process.stdin.close()

    async def _watch(self, coordinator: Coordinator) -> None:
        while True:
            while self._process.poll() is None:
                await asyncio.sleep(WATCH_SECONDS)
            coordinator.feed(AgentLost(self._name, ended=True))
            if not self._launch.job.elastic.enabled:
                return
            self._process = start_agent(self._launch.job.framework)
            self._hand_over()


def is_open(launch: JobLaunch) -> bool:
    """Whether agents from elsewhere can join, so that the job has as many workers as there are slots."""
    outward = launch.interface != network.loopback()
    return outward or launch.slots is not None or launch.job.launch.port is not None


async def run(launch: JobLaunch, agent: subprocess.Popen) -> int:
    """Run a job on this host with a started ``agent``; returns its exit code."""
    host, others = HostAgent(launch, agent), is_open(launch)
    try:
        return await coordinate(launch, host.start, on_drop=host.drop, follow=others, open_to_all=others)
    finally:
        await host.end()
