"""Agents under the real ``horovodrun`` with elastic flags; a "host" is one of the names of this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.runs import ROOT, environment

SECONDS = 40.0
"""horovodrun alone takes ten seconds to import what it needs."""


class Elastic:
    """horovodrun with agents that do not train; ``hosts`` is what its discovery script finds."""

    def __init__(self, directory: Path, *flags: str, hosts: str = ""):
        self.directory = directory
        if hosts:
            self.discover(hosts)
            script = directory / "discover.sh"
            script.write_text(f"#!/bin/sh\ncat {directory}/hosts\n")
            script.chmod(0o755)
            flags = (*flags, "--host-discovery-script", str(script))
        launcher = Path(sys.executable).parent / "horovodrun"
        if not launcher.exists():
            pytest.fail(f"{launcher} is missing: the engine is not installed in this environment")
        self.process = subprocess.Popen(
            [str(launcher), "--network-interfaces", "lo", *flags, sys.executable,
             str(ROOT / "tests" / "support" / "elastic_agent.py"), str(directory)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment())

    def discover(self, hosts: str) -> None:
        (self.directory / "hosts.new").write_text(hosts)
        os.replace(self.directory / "hosts.new", self.directory / "hosts")

    def log(self) -> list[dict]:
        path = self.directory / "log"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def until(self, *slots: str, life: int = 1) -> str:
        """Wait until the first process, in its ``life``, is connected to exactly these; returns its slot."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            views = [line for line in self.log() if "connected" in line]
            if views and sorted(views[-1]["connected"]) == sorted(slots) and views[-1]["life"] == life:
                return views[-1]["slot"]
            time.sleep(0.05)
        raise AssertionError(f"{slots} were not there in time\n{self.log()}\n{self.stop()}")

    def kill(self, host: str) -> None:
        """SIGKILL to all agents of a host at once, as if it lost power."""
        pids = {line["pid"] for line in self.log() if line["slot"].startswith(f"{host}:")}
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    def end(self, code: int = 0) -> subprocess.CompletedProcess:
        """Have the job end, and wait for horovodrun."""
        (self.directory / "end.new").write_text(str(code))
        os.replace(self.directory / "end.new", self.directory / "end")
        try:
            out, _ = self.process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"horovodrun does not end\n{self.log()}\n{self.stop()}") from None
        return subprocess.CompletedProcess(self.process.args, self.process.returncode, out)

    def stop(self) -> str:
        self.process.kill()
        for pid in {line["pid"] for line in self.log()}:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        return self.process.communicate()[0]


def test_the_loss_of_a_host_is_survived(tmp_path):
    """The others stay the processes that they were, and horovodrun ends with 0 although two of its processes died."""
    job = Elastic(tmp_path, "-np", "4", "--min-np", "2", "--max-np", "6", "-H", "localhost:2,127.0.0.1:2")
    first = job.until("localhost:0", "localhost:1", "127.0.0.1:0", "127.0.0.1:1")
    stays, goes = ("localhost", "127.0.0.1") if first == "localhost:0" else ("127.0.0.1", "localhost")
    time.sleep(1.0)  # whoever goes within a quarter of a second after coming has not been counted yet
    job.kill(goes)
    assert job.until(f"{stays}:0", f"{stays}:1") == first
    done = job.end()
    assert done.returncode == 0, done.stdout
    exits = {line["slot"]: line["exit"] for line in job.log() if "exit" in line}
    assert exits == {f"{stays}:0": 0, f"{stays}:1": 0}
    assert {line["life"] for line in job.log()} == {1}


def test_new_hosts_are_taken_in_and_outlive_the_first_one(tmp_path):
    """A host that the discovery script finds later gets agents; when the first host dies, they carry the job on."""
    job = Elastic(tmp_path, "-np", "1", "--min-np", "1", "--max-np", "4", hosts="localhost:1\n")
    job.until("localhost:0")
    job.discover("localhost:1\n127.0.0.1:2\n")
    assert job.until("localhost:0", "127.0.0.1:0", "127.0.0.1:1") == "localhost:0"
    job.kill("localhost")
    assert job.until("127.0.0.1:0", "127.0.0.1:1", life=2) == "127.0.0.1:0"
    done = job.end()
    assert done.returncode == 0, done.stdout
    exits = {line["slot"]: line["exit"] for line in job.log() if "exit" in line}
    assert exits == {"127.0.0.1:0": 0, "127.0.0.1:1": 0}
