"""One job by mpirun, srun and horovodrun, on one host and on several: the same training as ``hvtrain run``'s, to the bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from tests.support import requirements
from tests.support.hosts import ROOT, Hosts
from tests.support.runs import MARK, Run

STEPS = ("train.epochs=null", "train.steps=40", "task.args.slow=0.05", "log.ledger=true", "elastic.replace_timeout=60s")
KILL = {"kind": "kill", "step": 20, "phase": "bucket", "rank": 1}


def mpirun(*options: str) -> tuple[str, ...]:
    """What starts a job under Debian's mpirun."""
    path = shutil.which("mpirun")
    if path is None:
        requirements.lacking("mpirun is missing (Debian: openmpi-bin)")
    return (path, "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", *options)


def srun(each: int) -> tuple[str, ...]:
    return (sys.executable, "-m", "tests.support.srun", str(each))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What ``hvtrain run`` comes to with so many workers; each is made once."""
    digests = {}

    def digest(workers: int) -> str:
        if workers not in digests:
            run = Run(tmp_path_factory.mktemp("alone"))
            run.run(*STEPS, "task.args.slow=0", workers=workers)
            digests[workers] = run.digest()
        return digests[workers]

    return digest


@pytest.fixture
def run(tmp_path):
    job = Run(tmp_path)
    (tmp_path / "ledger").mkdir()
    yield job
    job.kill_all()


@pytest.fixture(scope="module")
def net():
    requirements.need_hosts()
    with Hosts(3) as made:
        yield made


def check(run: Run, digest: str, size: int) -> None:
    """The job has ended well although a worker was killed, and with what an undisturbed one would have come to."""
    assert run.wait(180).returncode == 0, run.logs()
    assert len(run.struck()) == len(run.events("worker_lost")) == 1
    assert run.exact(40).sizes == (size,) and run.digest() == digest
    assert not list(run.dir.glob(".coordinator")) and not list(run.dir.glob(".token")) and run.gone()


# On one host ----------------------------------------------------------------------------------------------
def test_mpirun_starts_agents_and_a_killed_worker_is_replaced(run, alone):
    """What a former mpirun job has left behind is not taken for this one's."""
    run.dir.mkdir()
    (run.dir / ".coordinator").write_text(json.dumps(
        {"job": "mpirun 1", "host": "127.0.0.1", "port": 1, "token": "t" * 64, "tls": False}))
    run.start(*STEPS, prefix=mpirun("-np", "2"), faults=[KILL])
    check(run, alone(2), 2)


@pytest.mark.soak
def test_with_two_stages_two_tasks_of_a_host_make_a_worker(run):
    """The split is measured by the first task and told to the others, two of which stand by."""
    hybrid = "hybrid={stages: 2, microbatches: 4}"
    run.start(*STEPS, hybrid, prefix=mpirun("-np", "4"), faults=[KILL])
    run.until_step(5, 120)
    names = sorted(run.pids().values())
    assert names.count("hvtrain-warm") == 2 and sum(name.startswith("hvtrain-w") for name in names) == 4, names
    assert run.wait(180).returncode == 0, run.logs()
    assert run.exact(40).sizes == (2,) and run.gone()
    uneven = run.run(*STEPS, hybrid, prefix=mpirun("-np", "3"), code=2)
    assert "2 stages each worker takes 2 slots of its host, but mpirun has started 3 processes" in uneven.stderr


@pytest.mark.soak
def test_what_is_stopped_under_mpirun_is_saved_and_goes_on(run, alone):
    run.start(*STEPS, "task.args.slow=0.2", prefix=mpirun("-np", "2"))
    run.until_step(10, 120)
    run.process.send_signal(signal.SIGTERM)
    assert run.wait().returncode != 0, "mpirun itself ends with 1 when it was told to stop"
    assert run.status()["resumable"] and run.status()["exit_code"] == 143, run.logs()
    step = run.status()["step"]
    run.run(*STEPS, prefix=mpirun("-np", "2"), seconds=120)
    assert run.events("resumed")[-1]["step"] == step >= 10
    assert run.digest() == alone(2) and run.gone()


@pytest.mark.soak
def test_the_first_tasks_failure_is_everybodys(run):
    """srun does not end the others: they learn it from the first, and do not wait for it."""
    (run.base / "tasks.py").write_text("raise RuntimeError('no such thing')")
    done = run.start(*STEPS, prefix=srun(2)).wait()
    assert done.returncode == 1 and "no such thing" in done.stderr, run.logs()
    done = run.start(*STEPS, "hybrid={stages: 3}", "data.global_batch=32", prefix=srun(2)).wait()
    assert done.returncode == 2 and "2 processes" in done.stderr and run.gone(), run.logs()


@pytest.mark.soak
def test_a_lost_task_is_survived_under_srun(run):
    """srun leaves the others alone, so the job goes on with the slots that are left."""
    run.start(*STEPS, "task.args.slow=0.2", "elastic.replace_timeout=2s", prefix=srun(3))
    run.until_step(5, 120)
    agents = {agent["agent"]: agent["pid"] for agent in overview(run)}
    assert sorted(name.split("@")[0] for name in agents) == ["0000", "0001", "0002"]
    os.kill(next(pid for name, pid in agents.items() if name.startswith("0002")), signal.SIGKILL)
    assert run.wait(120).returncode == 137, "srun says that a task was killed"
    assert run.exact(40).sizes == (2, 3) and run.status()["state"] == "done" and run.gone()


def overview(run: Run) -> list[dict]:
    from hvtrain.control import messages
    from hvtrain.control.console_client import ask

    return ask(run.dir, "ps", messages.Query(), messages.Overview).agents


# On several -----------------------------------------------------------------------------------------------
@pytest.mark.soak
def test_mpirun_over_hosts(run, alone, net):
    """Its first task's host is not the one that mpirun runs on."""
    passed = [word for name in ("PYTHONPATH", "OMP_NUM_THREADS", "PATH", MARK) for word in ("-x", name)]
    prefix = (*net.enter("h1", run.base), *mpirun("-np", "4", "-H", "h2:2,h3:2", "--mca", "oob_tcp_if_include", "eth0", "-wdir",
                                                  str(run.base), *passed))
    run.start(*STEPS, prefix=prefix, faults=[KILL])
    run.until_step(5, 150)
    assert {worker["host"] for worker in run_on(net, "h2", run)} == {"h2", "h3"}
    check(run, alone(4), 4)


@pytest.fixture(scope="module")
def three(tmp_path_factory, net):
    """What an undisturbed job on three hosts with a worker each comes to: sums are rounded as the hosts are filled."""
    run = Run(tmp_path_factory.mktemp("three"))
    run.run(*STEPS, "task.args.slow=0", prefix=srun(1), TEST_NODES=nodes(net, run), seconds=180)
    return run.digest()


def nodes(net: Hosts, run: Run) -> str:
    return json.dumps([net.enter(name, run.base) for name in net.names])


@pytest.mark.soak
def test_srun_over_hosts(run, three, net):
    run.start(*STEPS, prefix=srun(1), faults=[KILL], TEST_NODES=nodes(net, run))
    check(run, three, 3)


@pytest.mark.soak
def test_srun_over_hosts_without_a_shared_disk(run, tmp_path):
    """Two variables say where the coordinator is and what the token is."""
    requirements.need_hosts()
    private = tmp_path / "scratch"
    private.mkdir()
    with Hosts(2, private=[private]) as apart:
        run.start(*STEPS, f"run.dir={private}/run", prefix=srun(1), TEST_NODES=nodes(apart, run),
                  HVTRAIN_COORDINATOR=f"{apart.address('h1')}:4321", HVTRAIN_TOKEN="t" * 40)
        assert run.wait(180).returncode == 0, run.logs()
        status = json.loads(apart.run("h1", ["cat", f"{private}/run/status.json"]).stdout)
        assert (status["state"], status["step"], status["workers"]) == ("done", 40, 2)
        assert apart.run("h2", ["ls", f"{private}/run/checkpoints"], code=None).returncode != 0
    assert run.gone()


@pytest.mark.soak
def test_horovodrun_over_hosts(run, three, net):
    launcher = Path(sys.executable).parent / "horovodrun"
    prefix = (*net.enter("h1", run.base), str(launcher), "-np", "3", "-H", "h1:1,h2:1,h3:1", "--network-interfaces", "eth0")
    run.start(*STEPS, prefix=prefix, faults=[KILL])
    check(run, three, 3)


def run_on(net: Hosts, name: str, run: Run) -> list[dict]:
    """The job's workers, asked from a host."""
    said = net.run(name, [sys.executable, "-m", "hvtrain.cli.main", "ps", str(run.dir), "--json"], seconds=60,
                   env={**os.environ, "PYTHONPATH": str(ROOT)}).stdout
    return json.loads(said)["workers"]
