"""A job over hosts that have a network between them (tests/support/hosts.py), its agents started by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Mapping

from hvtrain.report import ledger
from tests.support.cluster import ADDRESS, INTERFACE
from tests.support.hosts import Hosts
from tests.support.runs import MARK, Run, environment


class NetCluster(Run):
    """The coordinator runs on one of the hosts, and one agent on each that has slots."""

    def __init__(self, directory: Path, net: Hosts, name: str = "run"):
        super().__init__(directory, name)
        self.net, self._record = net, directory / f"{name}.boot.json"
        self._agents: dict[str, list[subprocess.Popen]] = {}

    def start_on(self, hosts: Mapping[str, int], *overrides: str, coordinator: str = "h1",
                 follow: bool = True, version: int = 4) -> NetCluster:
        """Start the job with a worker on each slot of ``hosts`` (name: slots), over IPv4 or IPv6."""
        self._record.unlink(missing_ok=True)
        waiting = {name: self._agent(name) for name in hosts}  # they import what they need beside the coordinator
        self.launch([*self.net.enter(coordinator, self.base), sys.executable, "-m", "tests.support.cluster",
                     str(self.base / "job.yaml"), str(self._record), "", "follow" if follow else "fixed",
                     f"run.dir={self.dir}", f"launch.workers={sum(hosts.values())}", *overrides],
                    **{INTERFACE: "eth0", ADDRESS: self.net.address(coordinator, version)})
        for name, slots in hosts.items():
            self._employ(name, slots, waiting[name])
        return self

    def add(self, name: str, slots: int) -> None:
        """A host joins, perhaps one that was lost before."""
        self._employ(name, slots, self._agent(name))

    def codes(self, name: str, seconds: float = 60.0) -> list[int]:
        """The exit codes of the host's agents, once they have ended."""
        return [agent.wait(seconds) for agent in self._agents[name]]

    def names(self, host: str) -> set[str]:
        """What the job's processes on a host are called."""
        found = self.pids()
        return {found[pid] for pid in self.net.pids(host) if pid in found}

    def until_size(self, size: int, seconds: float = 90.0) -> None:
        """Wait until the job has changed to this size, in however many steps: hosts come and go one by one."""
        self.until(lambda: [event["new"] for event in self.events("resize")][-1:] == [size], f"size {size}", seconds)

    def commits(self) -> dict[tuple[int, int], list[tuple[int, float]]]:
        """By (start, round): the steps that anybody has committed in it, and when; in the order of time."""
        found: dict[tuple[int, int], list[tuple[int, float]]] = {}
        for line in sorted(ledger.read(self.dir / "ledger").committed, key=lambda line: line.time):
            found.setdefault(line.attempt, []).append((line.step, line.time))
        return found

    def never_two_at_once(self) -> None:
        """Fails if a step was committed in a round after a later one had committed any."""
        rounds = sorted(self.commits().items())
        for (old, before), (new, after) in zip(rounds, rounds[1:]):
            late = [step for step, time in before if time > after[0][1]]
            assert not late, f"round {old} has committed {late} after {new} had begun with {after[0]}"

    def kill_all(self) -> None:
        super().kill_all()
        for agents in self._agents.values():
            for agent in agents:
                agent.wait(10)

    def _employ(self, name: str, slots: int, agent: subprocess.Popen) -> None:
        record = self.until(lambda: self._record.exists() and self._record.read_text(), "the coordinator listens")
        self._agents.setdefault(name, []).append(agent)
        assert agent.stdin is not None
        agent.stdin.write(json.dumps({**json.loads(record), "name": f"agent@{name}", "host": name, "slots": slots}).encode())
        agent.stdin.close()

    def _agent(self, name: str) -> subprocess.Popen:
        with open(self.base / f"agent-{name}.log", "a") as log:
            return subprocess.Popen([*self.net.enter(name, self.base), sys.executable, "-m", "hvtrain.control.agentmain",
                                     str(os.getpid()), "torch"], stdin=subprocess.PIPE, stdout=log, stderr=log,
                                    start_new_session=True, env=environment(**{MARK: self.mark}))

    def logs(self) -> str:
        agents = [f"--- {path.name}\n{path.read_text()[-2000:]}" for path in sorted(self.base.glob("agent-*.log"))]
        return "\n".join([super().logs(), *agents])
