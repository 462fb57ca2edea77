"""A job on several "hosts" of this machine: real agents with names of their own that come, die and come again.

The coordinator is a process of its own: ``python -m tests.support.cluster CONFIG BOOT PLAN fixed|follow OVERRIDES...``
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any, Mapping, Sequence

from tests.support.runs import MARK, Run, environment

HOST_MARK = "TEST_HOST_MARK"
INTERFACE, ADDRESS = "TEST_INTERFACE", "TEST_ADDRESS"


class Cluster(Run):
    """A job in ``directory`` whose agents are added and removed by hand."""

    def __init__(self, directory: Path, name: str = "run"):
        super().__init__(directory, name)
        self._record = directory / f"{name}.boot.json"
        self._waiting: list[tuple[str, subprocess.Popen]] = []
        self._marks: dict[str, str] = {}
        self._agents: dict[str, subprocess.Popen] = {}

    def start(self, *overrides: str, hosts: Mapping[str, int], follow: bool = False, later: int = 0,
              faults: Sequence[dict[str, Any]] = ()) -> Cluster:
        """Start the job on ``hosts`` (name: slots), with a worker on each slot.

        Args:
            follow: the job takes every slot that is added.
            later: so many hosts will be added; their agents import what they need beside the others.
        """
        plan = self.write_plan(faults) if faults else ""
        self._waiting = [self._agent() for _ in range(len(hosts) + later)]
        self.launch([sys.executable, "-m", "tests.support.cluster", str(self.base / "job.yaml"), str(self._record),
                     str(plan), "follow" if follow else "fixed", f"run.dir={self.dir}",
                     f"launch.workers={sum(hosts.values())}", *overrides])
        for name, slots in hosts.items():
            self.add(name, slots)
        return self

    def add(self, name: str, slots: int) -> None:
        """A host joins, perhaps one that was lost before."""
        self._marks[name], agent = self._waiting.pop(0) if self._waiting else self._agent()
        self._agents[name] = agent
        record = self.until(lambda: self._record.exists() and self._record.read_text(), "the coordinator listens")
        assert agent.stdin is not None
        agent.stdin.write(json.dumps({**json.loads(record), "name": name, "host": name, "slots": slots}).encode())
        agent.stdin.close()

    def kill(self, name: str) -> None:
        """The host loses its power: all its processes end at once."""
        pids = self.pids(self._marks.pop(name), HOST_MARK)
        assert len(pids) >= 3, f"agent, warm process and workers were expected on {name}: {pids}"
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        self._agents.pop(name).wait(10)

    def terminate(self, name: str) -> None:
        """The host's agent gets the SIGTERM that announces the host's end."""
        self._agents[name].send_signal(signal.SIGTERM)

    def agent_code(self, name: str, seconds: float = 20.0) -> int:
        """The exit code of a host's agent, once it has ended."""
        return self._agents[name].wait(seconds)

    def until_resize(self, *sizes: int, seconds: float = 60.0) -> None:
        """Wait until the job has had exactly these sizes, one after the other, after its first one."""
        self.until(lambda: [event["new"] for event in self.events("resize")] == list(sizes), f"sizes {sizes}", seconds)

    def kill_all(self) -> None:
        super().kill_all()
        for agent in (*self._agents.values(), *(agent for _, agent in self._waiting)):
            agent.wait(10)

    def _agent(self) -> tuple[str, subprocess.Popen]:
        """An agent that does not know its job yet, and the mark of its processes."""
        mark = uuid.uuid4().hex
        with open(self.base / "agents.log", "a") as log:
            return mark, subprocess.Popen(
                [sys.executable, "-m", "hvtrain.control.agentmain", str(os.getpid()), "torch"], stdin=subprocess.PIPE,
                stdout=log, stderr=log, start_new_session=True, env=environment(**{MARK: self.mark, HOST_MARK: mark}))

    def logs(self) -> str:
        return f"{super().logs()}\n--- agents.log\n{(self.base / 'agents.log').read_text()[-3000:]}"


def main(config: str, record: str, plan: str, mode: str, *overrides: str) -> int:
    """Be the coordinator of a job; what its agents must be told goes into the file ``record``."""
    from hvtrain.chaos import load as load_plan
    from hvtrain.config import load
    from hvtrain.launch.joblaunch import coordinate, prepare
    from hvtrain.report.rundir import write_json

    job = load(config, list(overrides))
    interface = os.environ.get(INTERFACE)  # what another launcher chooses; workers find their own
    launch = prepare(job, config, "hvtrain run", interface=interface, faults=load_plan(plan) if plan else None)
    launch = replace(launch, address=os.environ.get(ADDRESS))

    async def start_agents(address, coordinator):
        write_json(Path(record), {"boot": launch.boot(address, launch.workers).to_json(), "job_digest": launch.digest})

    return asyncio.run(coordinate(launch, start_agents, follow=mode == "follow"))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
