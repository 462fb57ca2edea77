"""A job that ``hvtrain run`` starts over hosts by ssh (tests/support/hosts.py), its launcher on h1."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

from hvtrain.errors import ExitCode
from tests.support.hosts import Hosts
from tests.support.runs import Run, environment


class HostRun(Run):
    """A job that is launched on h1 of ``net``."""

    def __init__(self, directory, net: Hosts, name: str = "run"):
        super().__init__(directory, name)
        self.net = net
        self.script = directory / "discover.sh"
        self.known = 0  # losses of workers that a test has looked at

    def start_on(self, names: str, *overrides: str, **more) -> HostRun:
        """Start it over the hosts of a list such as h1:1,h2:1."""
        return self.start("-H", names, *overrides, prefix=self.net.enter("h1", self.base), **more)

    def start_discovering(self, names: str, *overrides: str, **more) -> HostRun:
        """The same, but the hosts are those that a script names, which :meth:`name_hosts` changes."""
        self.name_hosts(names)
        self.script.write_text(f"#!/bin/sh\ncat {self.base}/hosts\n")
        self.script.chmod(0o755)
        return self.start("--host-discovery-script", str(self.script), *overrides,
                          prefix=self.net.enter("h1", self.base), **more)

    def name_hosts(self, names: str) -> None:
        (self.base / "hosts.new").write_text(names.replace(",", "\n") + "\n")
        (self.base / "hosts.new").rename(self.base / "hosts")

    def until_resize(self, *sizes: int) -> None:
        """Wait until the job has had exactly these sizes, one after the other, after its first one."""
        self.until(lambda: [event["new"] for event in self.events("resize")] == list(sizes), f"sizes {sizes}", 90.0)

    def busy(self) -> str:
        """A host other than the launcher's on which workers run."""
        return next(name for name in self.net.names[1:] if workers(self.net.pids(name)))

    def goes_on(self, *hosts: str) -> None:
        """More workers are lost, all of them on these hosts, and the job goes on."""
        self.until(lambda: len(self.events("worker_lost")) > self.known, f"workers lost on {hosts}")
        self.until_step(self.last_step() + 12, 90.0)
        lost = {event["host"].rpartition("@")[2] for event in self.events("worker_lost")[self.known:]}
        self.known = len(self.events("worker_lost"))
        assert lost and lost <= {*hosts}, self.logs()

    def until_agents(self, *hosts: str) -> None:
        """Wait until agents of exactly these hosts are connected to the coordinator."""
        def there() -> bool:
            command = [sys.executable, "-m", "hvtrain.cli.main", "ps", str(self.dir), "--json"]
            seen = json.loads(self.net.run("h1", command, env=environment()).stdout)
            return sorted(agent["host"] for agent in seen["agents"]) == [*hosts]

        self.until(there, f"agents of {hosts}", 90.0)

    def stop(self) -> int:
        """Have the job stop in order; returns how many steps it has taken."""
        self.process.send_signal(signal.SIGTERM)
        done = self.wait()
        assert done.returncode == ExitCode.TERMINATED, self.logs()
        return self.status()["step"]

    def said(self) -> str:
        return self._output("out").read_text() + self._output("err").read_text()


def named(name: str, pids: list[int]) -> list[int]:
    """Those of these processes that ``ps`` shows by this name."""
    return [pid for pid in pids if Path(f"/proc/{pid}/comm").read_text().strip() == name]


def workers(pids: list[int]) -> list[int]:
    """Those of these processes that are workers."""
    names = {pid: Path(f"/proc/{pid}/comm").read_text().strip() for pid in pids}
    return [pid for pid, name in names.items()
            if name.startswith("hvtrain-") and name not in ("hvtrain-agent", "hvtrain-warm")]
