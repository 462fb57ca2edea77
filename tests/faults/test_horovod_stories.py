"""The stories of Horovod's own elastic integration suite (test/integration/elastic_common.py and test_elastic_torch.py of
0.28.1), told of ours: real agents, each a "host" of its own. Where theirs ends the job, ours goes on if anything is left.
"""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import Iterator

import pytest

from tests.support.cluster import Cluster
from tests.support.whole_job import STEPS, WHOLE

ENDLESS = ("train.epochs=null", "train.steps=1000000", "eval.every=null", "log.ledger=true", "task.args.slow=0.03")


@pytest.fixture
def cluster(tmp_path):
    job = Cluster(tmp_path)
    with ending(job):
        yield job


@contextmanager
def ending(job: Cluster) -> Iterator[None]:
    """No process of the job outlives this context."""
    try:
        yield
    finally:
        job.kill_all()


@pytest.fixture(scope="module")
def two_hosts(tmp_path_factory):
    """One job on two hosts with two ranks each, to which three of the stories happen one after the other."""
    job = Cluster(tmp_path_factory.mktemp("two"))
    with ending(job):
        job.start(*WHOLE, "elastic.snapshot_every=5 steps", hosts={"a": 2, "b": 2}, faults=[
            {"kind": "raise", "step": 15, "rank": 1},
            {"kind": "kill", "step": 30, "phase": "backward", "rank": 3},
            {"kind": "kill", "step": 45, "phase": "bucket", "rank": [1, 2]},
            {"kind": "kill", "step": 62, "phase": "optimizer", "rank": [0, 1, 2, 3]},
        ])
        assert job.wait().returncode == 0
        yield job


def lost_at(job: Cluster, fault: int) -> list[tuple[str, int]]:
    """Host and rank of the workers that a fault of the plan has struck, all of which are lost."""
    strikes = [strike for strike in job.struck() if strike.fault == fault]
    lost = {event["time"]: (event["host"], event["rank"]) for event in job.events("worker_lost")}
    found = [min((abs(when - strike.time), whom) for when, whom in lost.items() if whom[1] == strike.rank)
             for strike in strikes]
    assert all(distance < 2.0 for distance, _ in found), found
    return sorted(whom for _, whom in found)


def test_single_rank_failure(two_hosts, calm):
    """test_single_rank_failure (exception and kill). Theirs loses all ranks of the host, for good; ours nothing."""
    assert lost_at(two_hosts, 0) == [("a", 1)] and lost_at(two_hosts, 1) == [("b", 3)]
    assert len(two_hosts.events("worker_lost")) == 1 + 1 + 2 + 4
    assert two_hosts.exact(STEPS).sizes == (4,), "each was replaced on its own host"
    assert two_hosts.ending() == calm(4)


def test_all_hosts_blacklisted(two_hosts):
    """test_all_hosts_blacklisted: a rank fails on every host. Theirs has no host left and ends; ours goes on in place."""
    assert lost_at(two_hosts, 2) == [("a", 1), ("b", 2)]
    assert two_hosts.exact(STEPS).sizes == (4,)


def test_all_ranks_failure(two_hosts):
    """test_all_ranks_failure. Theirs ends; ours goes on from the snapshot in the hosts' memory, and says so."""
    assert lost_at(two_hosts, 3) == [("a", 0), ("a", 1), ("b", 2), ("b", 3)]
    rollback, = two_hosts.events("rollback")
    assert (rollback["source"], rollback["step"]) == ("memory", 60)
    assert two_hosts.exact(STEPS).repeated == rollback["steps"] <= 2
    assert two_hosts.gone()


def test_hosts_added_and_removed(cluster):
    """test_hosts_added_and_removed. The host that is removed is told before (SIGTERM), so not even a step is taken twice."""
    cluster.start(*ENDLESS, hosts={"a": 1}, follow=True, later=1)
    cluster.until_step(3)
    cluster.add("b", 2)
    cluster.until_resize(3)
    cluster.until_step(cluster.last_step() + 3)
    cluster.terminate("a")
    cluster.until_resize(3, 2)
    assert cluster.agent_code("a") == 0
    cluster.until_step(cluster.last_step() + 3)
    stopped = stop(cluster)
    report = cluster.exact(stopped)
    assert (report.sizes, report.repeated, report.retried) == ((1, 2, 3), 0, 0)
    assert len(cluster.events("round")) == 3, "each change costs one round"
    assert not cluster.events("worker_lost") and cluster.gone()


def stop(job: Cluster) -> int:
    """End an endless job; returns the step that it stopped at."""
    job.process.send_signal(signal.SIGTERM)
    assert job.wait().returncode == 143
    return job.status()["step"]


@pytest.fixture(scope="module")
def fixed_hosts(tmp_path_factory):
    """A job on a fixed set of three hosts that loses first one, then another."""
    job = Cluster(tmp_path_factory.mktemp("fixed"))
    with ending(job):
        job.start(*ENDLESS, "elastic.min_workers=2", "launch.start_timeout=20s", "checkpoint.every=1000000 steps",
                  hosts={"a": 1, "b": 1, "c": 1})
        job.until_step(10)
        job.kill("b")
        job.until_resize(2)
        job.until_step(job.last_step() + 10)
        last = job.last_step()
        job.kill("c")
        yield job, last, job.wait()


def test_fault_tolerance_without_scaling(fixed_hosts):
    """test_fault_tolerance_without_scaling: a host is lost, none is added; the job goes on with the others."""
    job, _, _ = fixed_hosts
    assert [(event["old"], event["new"]) for event in job.events("resize")] == [(3, 2)]
    assert job.events("worker_lost")[0]["host"] == "b"
    assert not job.events("rollback")


def test_min_hosts_timeout(fixed_hosts):
    """test_min_hosts_timeout: fewer than elastic.min_workers, and nobody comes. The survivor saves, and the job ends."""
    job, last, done = fixed_hosts
    assert done.returncode == 144, done.stderr
    assert "only 1 of at least 2 workers (elastic.min_workers) are left" in done.stderr
    assert "go on from the last checkpoint with: hvtrain run" in done.stderr
    saved = job.ending()["step"]
    assert saved >= last and job.events("checkpoint")[-1]["step"] == saved
    assert (job.status()["state"], job.status()["resumable"]) == ("failed", True)
    job.exact(saved)
    assert job.gone()


def test_reset_limit(run):
    """test_reset_limit: so many resets are endured, one more ends the job. Ours counts lost workers by the hour."""
    done = run.run(*ENDLESS, "elastic.max_losses_per_hour=2", workers=2, code=144, faults=[
        {"kind": "kill", "step": step, "phase": "backward", "rank": 1} for step in (10, 18, 26)])
    assert len(run.struck()) == len(run.events("worker_lost")) == 3
    assert "3 workers were lost within an hour, more than elastic.max_losses_per_hour allows" in done.stderr
    assert run.ending()["step"] == 25, "the survivor has saved"
    assert run.gone()


@pytest.mark.soak
def test_resurrecting_blacklisted_hosts(cluster):
    """test_resurrecting_blacklisted_hosts: a host dies, comes back, and is taken in again; twice."""
    cluster.start(*ENDLESS, hosts={"a": 1, "b": 1}, follow=True, later=2)
    cluster.until_step(5)
    cluster.kill("b")
    cluster.until_resize(1)
    cluster.add("b", 1)
    cluster.until_resize(1, 2)
    cluster.kill("b")
    cluster.until_resize(1, 2, 1)
    cluster.add("b", 1)
    cluster.until_resize(1, 2, 1, 2)
    cluster.until_step(cluster.last_step() + 5)
    report = cluster.exact(stop(cluster))
    assert (report.sizes, report.repeated) == ((1, 2), 0)
    assert [event["host"] for event in cluster.events("worker_lost")] == ["b", "b"] and cluster.gone()
