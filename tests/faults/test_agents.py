"""Agents that are added by hand (``hvtrain agent``): they come before the coordinator and while it runs, leave, are killed,
outlive it and find the next one; and those that cannot take part are told why."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from tests.support import requirements
from tests.support.hosts import Hosts
from tests.support.runs import MARK, Run, environment

ENDLESS = ("train.epochs=null", "train.steps=1000000", "eval.every=null", "log.ledger=true", "task.args.slow=0.05")
STEPS = ("train.epochs=null", "train.steps=120", "log.ledger=true", "task.args.slow=0.1", "elastic.replace_timeout=60s")


class Shared(Run):
    """A job that agents join by hand, and those agents."""

    def __init__(self, directory: Path, name: str = "run"):
        super().__init__(directory, name)
        self.token = directory / "token"
        self.token.write_text(f"{uuid.uuid4().hex}{uuid.uuid4().hex}\n")
        self.token.chmod(0o600)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.agents: dict[str, subprocess.Popen] = {}
        (directory / "ledger").mkdir(exist_ok=True)

    @property
    def settings(self) -> tuple[str, ...]:
        return (f"launch.port={self.port}", f"launch.token_file={self.token}")

    def add(self, name: str, *options: str, where: str = "127.0.0.1", prefix: tuple[str, ...] = ()) -> None:
        """Start an agent of that name."""
        with open(self.said(name), "w") as log:
            self.agents[name] = subprocess.Popen(
                [*prefix, sys.executable, "-m", "hvtrain.cli.main", "agent", "--coordinator", f"{where}:{self.port}",
                 "--token-file", str(self.token), "--name", name, *options],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", env=environment(**{MARK: self.mark}))

    def said(self, name: str) -> Path:
        return self.base / f"{name}.log"

    def code(self, name: str, seconds: float = 60.0) -> int:
        """The exit code of an agent, once it has ended."""
        try:
            return self.agents[name].wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{name} has not ended: {self.said(name).read_text()}\n{self.logs()}") from None

    def until_size(self, *sizes: int) -> None:
        """Wait until the job has had exactly these sizes after its first, and train on a little."""
        self.until(lambda: [event["new"] for event in self.events("resize")] == list(sizes), f"sizes {sizes}", 90)
        self.until_step(self.last_step() + 3)

    def kill_all(self) -> None:
        super().kill_all()
        for agent in self.agents.values():
            agent.wait(10)

    def logs(self) -> str:
        return "\n".join([super().logs(), *(f"--- {name}\n{self.said(name).read_text()[-2000:]}" for name in self.agents)])


@pytest.fixture
def run(tmp_path):
    job = Shared(tmp_path)
    yield job
    job.kill_all()


def test_agents_come_and_go(run):
    """One is there before the coordinator, one comes while the job runs; the first leaves again, and no step is lost."""
    run.add("early")
    run.start(*ENDLESS, *run.settings, "-np", "2", "--slots", "1", "launch.interface=lo")
    run.until_step(3, 90)
    assert "nobody listens there" in run.said("early").read_text(), "it has waited"
    run.add("late")
    run.until_size(3)
    run.agents["early"].send_signal(signal.SIGINT)  # a person's Ctrl-C there means that agent alone
    run.until_size(3, 2)
    assert run.code("early") == 0 and "its workers have left the job" in run.said("early").read_text()
    os.kill(run.agents["late"].pid, signal.SIGKILL)
    run.until_size(3, 2, 1)
    assert run.code("late") == -signal.SIGKILL
    run.process.send_signal(signal.SIGTERM)
    assert run.wait().returncode == 143
    report = run.exact(run.status()["step"])
    assert (report.sizes, report.repeated) == ((1, 2, 3), 0)
    assert [event["host"] for event in run.events("worker_lost")] == [f"late@{socket.gethostname()}"], "only the killed one's"
    said = run._output("out").read_text()
    assert f"join with: hvtrain agent --coordinator 127.0.0.1:{run.port} --token-file {run.token}" in said
    assert run.token.read_text().strip() not in said + run.logs() and run.gone()


@pytest.mark.soak
def test_agents_outlive_the_coordinator_and_find_the_next_one(run, tmp_path_factory):
    """Its process is killed: the workers save and stop, the agent waits. `hvtrain run --resume` in its place goes on with
    it, from the run directory alone and started elsewhere; the weights are those of an undisturbed run."""
    alone = Run(tmp_path_factory.mktemp("alone"))
    alone.run(*STEPS, "task.args.slow=0", workers=2)
    run.add("helper")
    run.start(*STEPS, *run.settings, "-np", "2", "--slots", "1", "launch.interface=lo")
    run.until_step(20, 90)
    os.kill(run.process.pid, signal.SIGKILL)
    run.wait()
    run.launch(["env", "-C", "/", sys.executable, "-m", "hvtrain.cli.main", "run", "--resume", str(run.dir), "--slots", "1"])
    assert run.wait(180).returncode == 0, run.logs()
    assert run.code("helper") == 0, run.logs()
    assert run.events("resumed")[0]["step"] >= 20 and run.exact(120).repeated == 0
    assert run.ending() == alone.ending() and run.gone()


@pytest.mark.soak
def test_agents_of_other_hosts(tmp_path):
    """The network between hosts is found by itself. An agent with other code is told so."""
    requirements.need_hosts()
    run = Shared(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "tasks.py").write_text("# another one\n")
    with Hosts(3) as net:
        try:
            run.start(*ENDLESS, *run.settings, "-np", "2", "--slots", "1", prefix=net.enter("h1", tmp_path))
            run.add("h2", where="h1", prefix=net.enter("h2"))
            run.until_step(3, 120)
            run.add("code", "--code", str(tmp_path / "other"), where="h1", prefix=net.enter("h3"))
            assert run.code("code") == 2 and "tasks.py is another one" in run.said("code").read_text()
            run.add("h3", where="h1", prefix=net.enter("h3"))
            run.until_size(3)
            net.kill("h3")
            run.until_size(3, 2)
            run.process.send_signal(signal.SIGTERM)
            assert run.wait().returncode == 143 and run.code("h2") == 143
            assert run.exact(run.status()["step"]).sizes == (2, 3)
            assert [event["host"] for event in run.events("worker_lost")] == ["h3@h3"]
        finally:
            run.kill_all()
    assert run.gone()


@pytest.mark.soak
def test_an_agent_that_one_of_the_others_does_not_reach_is_refused_and_the_job_goes_on(tmp_path):
    """Its worker reaches the coordinator, so it got a seat; no round could be formed, and that was the end of the job."""
    requirements.need_hosts()
    run = Shared(tmp_path)
    with Hosts(3) as net:
        try:
            run.start(*ENDLESS, *run.settings, "-np", "2", "--slots", "1", "comm.timeout=4s", prefix=net.enter("h1", tmp_path))
            run.add("h2", where="h1", prefix=net.enter("h2"))
            run.until_step(3, 120)
            net.run("h3", ["ip", "route", "add", "unreachable", f"{net.address('h2')}/32"])
            run.add("h3", where="h1", prefix=net.enter("h3"))
            assert run.code("h3", 120) == 3, "it does not wait for a job that it cannot be part of"
            said = run.said("h3").read_text()
            assert "a new worker on h3 and those that train on h1, h2 could not connect" in said and "launch.interface" in said
            (told,) = run.events("left_out")
            assert told["host"] == "h3" and told["reason"] in run._output("out").read_text()
            run.until_step(run.last_step() + 20)
            assert not run.events("worker_lost") and not run.events("resize")
            net.run("h3", ["ip", "route", "del", "unreachable", f"{net.address('h2')}/32"])
            run.add("mended", where="h1", prefix=net.enter("h3"))
            run.until_size(3)
            run.process.send_signal(signal.SIGTERM)
            assert run.wait().returncode == 143
            assert run.exact(run.status()["step"]).sizes == (2, 3)
        finally:
            run.kill_all()
    assert run.gone()


@pytest.mark.soak
def test_who_cannot_join_is_told_why(run):
    run.start(*ENDLESS, *run.settings, "-np", "1", "launch.interface=lo")
    run.until_step(1, 90)
    run.add("one")
    run.until_size(2)
    run.add("two")
    run.until_size(2, 3)
    same = subprocess.run([sys.executable, "-m", "hvtrain.cli.main", "agent", "--coordinator", f"127.0.0.1:{run.port}",
                           "--token-file", str(run.token), "--name", "one"], capture_output=True, text=True, timeout=60,
                          env=environment())
    assert same.returncode == 2 and "an agent named 'one'" in same.stderr, same.stderr
    run.token.write_text("w" * 40)
    run.add("stranger")
    assert run.code("stranger") == 3 and "does not accept this token" in run.said("stranger").read_text()
    run.process.send_signal(signal.SIGTERM)
    assert run.wait().returncode == 143 and (run.code("one"), run.code("two")) == (143, 143)
    assert run.gone()
