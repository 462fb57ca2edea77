"""The network between hosts fails: it parts in the middle, a cable is cut, power goes, a link is slow. Packets are
dropped and nothing is reset. Whatever happens, no two parts of the job train at the same time, and no sample is lost or
used twice."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.support.netcluster import NetCluster
from tests.support.requirements import need_edit
from tests.support.runs import Run

STEPS = 150
JOB = ("train.epochs=null", f"train.steps={STEPS}", "data.global_batch=33", "log.ledger=true", "task.args.norm=true",
       "optim.schedule={name: cosine, warmup: 10%}", "task.args.slow=0.05", "checkpoint.every=10 steps")
QUICK = ("elastic.heartbeat_timeout=2s", "elastic.coordinator_timeout=4s", "elastic.replace_timeout=1s")
FOUR = {"h1": 1, "h2": 1, "h3": 1, "h4": 1}


@pytest.fixture
def job(tmp_path, net):
    run = NetCluster(tmp_path, net)
    yield run
    run.kill_all()


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """What four workers end with that are left alone."""
    alone = Run(tmp_path_factory.mktemp("calm"))
    alone.run(*JOB, "task.args.slow=0", "comm.shared_memory=false", workers=4)
    return alone.ending()


def finished(job: NetCluster, steps: int = STEPS) -> None:
    """The job ends as it should: each sample used once, never by two parts at the same time, and nothing left behind."""
    assert job.wait(180).returncode == 0, job.logs()
    assert job.exact(steps)
    job.never_two_at_once()
    assert job.gone(15), job.pids()


def last_commit(job: NetCluster, round: int) -> float:
    return job.commits()[1, round][-1][1]


def lost_on(job: NetCluster) -> set[str]:
    """Hosts that workers were lost on; of one whose agent was lost first, its name tells."""
    return {event["host"].removeprefix("agent@") for event in job.events("worker_lost")}


def test_the_network_parts_in_the_middle_and_heals(job, net):
    """The side of the coordinator goes on with two; the other one stops, though its workers live, and begins anew."""
    job.start_on(FOUR, *JOB, *QUICK, "elastic.min_workers=2")
    job.until_step(10)
    before = {name: net.pids(name) for name in ("h3", "h4")}
    net.partition(["h1", "h2"], ["h3", "h4"])
    cut = time.time()
    job.until_size(2)
    assert all(set(pids) <= set(net.pids(name)) for name, pids in before.items()), "the network alone was the fault"
    assert lost_on(job) == {"h3", "h4"} and last_commit(job, 1) < cut + 2.0
    job.until_step(job.last_step() + 10)
    net.heal()
    job.until_size(4)
    finished(job)
    assert {event["cause"] for event in job.events("worker_lost")} <= {"silent", "agent_lost"}, "whichever is missed first"
    assert not job.events("rollback")


@pytest.mark.soak
def test_too_few_on_the_coordinators_side_wait_for_the_others(job, net, calm):
    """Nobody trains until the network is back; then all go on as four, and not a bit is different."""
    job.start_on(FOUR, *JOB, *QUICK, "elastic.min_workers=4")
    job.until_step(10)
    net.partition(["h1", "h2"], ["h3", "h4"])
    job.until(lambda: len(job.events("worker_lost")) >= 2, "the others are missed")
    stood = job.last_step()
    time.sleep(6)  # longer than elastic.coordinator_timeout: the other side has stopped for good
    assert job.last_step() == stood
    net.heal()
    finished(job)
    assert not job.events("resize") and job.ending() == calm


@pytest.mark.soak
def test_everything_over_ipv6(job, net, calm):
    """Seats, state and gradients; a host is killed on the way, and its place taken by one that lacks the state."""
    need_edit("own-address")
    job.start_on(FOUR, *JOB, *QUICK, "elastic.min_workers=4", version=6)
    job.until_step(10)
    assert all("fd77::" in net.run(name, ["ss", "-tn"]).stdout and "10.77." not in net.run(name, ["ss", "-tn"]).stdout
               for name in FOUR), "no connection between hosts is over IPv4"
    assert len(net.kill("h3")) >= 3
    job.add("h3", 1)
    finished(job)
    assert lost_on(job) == {"h3"} and job.ending() == calm


@pytest.mark.soak
def test_one_link_goes_down_and_comes_back(job, net):
    job.start_on(FOUR, *JOB, *QUICK, "elastic.min_workers=2")
    job.until_step(10)
    net.link("h4", up=False)
    job.until_size(3)
    net.link("h4", up=True)
    job.until_size(4)
    finished(job)
    assert lost_on(job) == {"h4"}


@pytest.mark.soak
def test_a_cable_of_one_host_is_cut_for_a_moment(job, net, calm):
    """Shorter than elastic.heartbeat_timeout: nobody is lost, and the round goes on."""
    job.start_on(FOUR, *JOB, "elastic.heartbeat_timeout=10s")
    job.until_step(10)
    net.cable("h3", up=False)
    time.sleep(1.5)
    net.cable("h3", up=True)
    finished(job)
    assert not job.events("worker_lost") and len(job.events("round")) == 1 and job.ending() == calm


@pytest.mark.soak
def test_a_host_loses_power(job, net):
    steps = 700  # enough for its agent to start afresh meanwhile
    job.start_on(FOUR, *JOB, *QUICK, "elastic.min_workers=2", f"train.steps={steps}")
    job.until_step(10)
    killed = net.power_off("h3")
    assert len(killed) >= 3, "agent, warm process and worker were expected there"
    job.until_size(3)
    net.power_on("h3")
    job.add("h3", 1)
    job.until_size(4)
    finished(job, steps)
    assert lost_on(job) == {"h3"}


@pytest.mark.soak
def test_a_slow_link_makes_nobody_lost(job, net, calm):
    """2.6 MB of gradients in each step, and signs of life beside them, over 10 Mbit/s."""
    wide = ("task.args.width=4096", "train.steps=12", "checkpoint.every=5 steps")
    job.start_on(FOUR, *JOB, *wide)
    job.until_step(2)
    net.rate("h2", "10mbit")
    assert job.wait(150).returncode == 0, job.logs()
    assert job.exact(12).sizes == (4,) and not job.events("worker_lost") and len(job.events("round")) == 1


@pytest.mark.soak
def test_a_link_that_carries_one_way_only(job, net):
    """What h4 says arrives, what it is told does not: it stops as soon as the others go on without it."""
    job.start_on(FOUR, *JOB, *QUICK, "elastic.min_workers=2")
    job.until_step(10)
    entry = [net.address("h4"), "dev", "eth0"]
    for name in ("h1", "h2", "h3"):  # they send to a network card that nobody has
        net.run(name, ["ip", "neigh", "replace", *entry, "lladdr", "02:00:00:00:00:99", "nud", "permanent"])
    cut = time.time()
    job.until_size(3)
    assert last_commit(job, 1) < cut + 2.0
    for name in ("h1", "h2", "h3"):
        net.run(name, ["ip", "neigh", "del", *entry])
    job.until_size(4)
    finished(job)


@pytest.mark.soak
def test_the_coordinators_host_has_no_workers_and_is_cut_off(job, net):
    """All workers are on the other side, and could go on: they may not, for the coordinator cannot know it."""
    job.start_on({"h2": 1, "h3": 1}, *JOB, *QUICK, coordinator="h1")
    job.until_step(20)
    net.cable("h1", up=False)
    cut = time.time()
    time.sleep(3.5)
    stood = last_commit(job, 1)
    assert stood < cut + 2.0 and {"hvtrain-w0", "hvtrain-w1"} == {
        name for host in ("h2", "h3") for name in job.names(host) if name.startswith("hvtrain-w") and name != "hvtrain-warm"}
    net.cable("h1", up=True)
    job.until(lambda: job.last_step() > 60, "the job goes on")
    finished(job)


@pytest.mark.soak
def test_a_coordinator_that_stands_still_holds_the_job_up_and_ends_nothing(job, net, calm):
    """20 s, as after Ctrl-Z. Nobody is lost, and the round goes on as if nothing had been."""
    job.start_on(FOUR, *JOB)
    job.until_step(10)
    coordinator = [pid for pid, name in job.pids().items() if pid == job.process.pid]
    assert coordinator
    os.kill(job.process.pid, signal.SIGSTOP)
    stopped = time.time()
    time.sleep(20)
    assert last_commit(job, 1) < stopped + 5.5
    os.kill(job.process.pid, signal.SIGCONT)
    finished(job)
    assert not job.events("worker_lost") and len(job.events("round")) == 1 and job.ending() == calm


@pytest.mark.soak
def test_the_coordinators_host_is_lost(job, net):
    """The others save and stop, each says that it can be started again, and the run goes on where it was."""
    job.start_on(FOUR, *JOB, *QUICK, "elastic.rejoin_timeout=3s")
    job.until_step(25)
    net.power_off("h1")
    assert [job.codes(name) for name in ("h2", "h3", "h4")] == [[144]] * 3
    saved = max(job.commits()[1, 1])[0]
    from hvtrain.checkpoint import Store

    assert max(Store(job.dir / "checkpoints").steps()) >= saved - 1
    job.process.wait(10)
    net.power_on("h1")
    job.start_on({"h2": 1, "h3": 1, "h4": 1}, *JOB, *QUICK, coordinator="h2")
    job.until(lambda: job.events("resumed"), "the run goes on")
    finished(job)
    assert job.events("resumed")[0]["step"] >= saved - 1
