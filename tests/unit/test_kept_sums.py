"""A run that goes on elsewhere computes with as many threads, and sums in the same order, as it began."""

from __future__ import annotations

import json
import logging

import pytest

from hvtrain.config import Job
from hvtrain.control import messages as m
from hvtrain.control.sums import Sums, kept_threads
from hvtrain.launch import hostrun
from hvtrain.launch.contact import Met, Network, Party
from hvtrain.launch.hosts import of_list
from hvtrain.launch.joblaunch import JobLaunch
from hvtrain.launch.settling import chosen_threads
from hvtrain.report import wording
from tests.support.control import HELLO, expect, run


@pytest.fixture
def file(tmp_path):
    return tmp_path / "sums.json"


def job(directory, **sections) -> Job:
    return Job.model_validate({"task": {"target": "m:t"}, "data": {"global_batch": 4}, "train": {"epochs": 1},
                               "optim": {"name": "sgd", "lr": 1.0}, "run": {"dir": str(directory)}, **sections})


# The file ------------------------------------------------------------------------------------------------
def test_threads_and_orders_of_sums_outlive_the_coordinator(file):
    first = Sums(file, workers=4)
    first.shares.offer("a", 4, 2)
    assert first.threads() == 2 and not first.apart("aabb")
    second = Sums(file, workers=4)
    second.shares.offer("a", 4, 8)
    assert second.threads() == 2, "the next host has more cores"
    assert second.apart("aabc"), "it began in the order of the tree"
    assert not second.apart("aab") and not Sums(file, workers=4).apart("abc")
    assert json.loads(file.read_text()) == {"workers": 4, "threads": 2, "tree": {"4": True, "3": False}}


def test_a_person_who_chooses_now_has_the_last_word(file):
    for threads, each in ((None, 2), (3, 3), (None, 3)):
        sums = Sums(file, workers=4, threads=threads)
        sums.shares.offer("a", 4, 2)
        assert sums.threads() == each


def test_another_number_of_workers_rounds_differently_anyhow(file):
    """A run that was tried out with one worker on sixteen cores is not to compute with 4 x 16 threads when it has four."""
    for workers, offered, each in ((1, 16, 16), (4, 4, 4), (4, 16, 4), (1, 16, 16)):
        sums = Sums(file, workers=workers)
        sums.shares.offer("a", workers, offered)
        assert sums.threads() == each


def test_a_run_of_which_nothing_is_kept():
    sums = Sums()
    sums.shares.offer("a", 4, 2)
    assert sums.threads() == 2 and not sums.apart("aabb") and sums.apart("aabc")


@pytest.mark.parametrize("text", [
    "", "[]", "{}", '{"workers": 1, "threads": 0, "tree": {}}', '{"workers": 1, "threads": true, "tree": {}}',
    '{"workers": 1, "threads": 2, "tree": []}', '{"workers": 1, "threads": 2, "tree": {"x": true}}',
    '{"workers": 1, "threads": 2, "tree": {"4": 1}}'])
def test_a_damaged_file_is_told_of_and_written_anew(file, text, caplog):
    file.write_text(text)
    with caplog.at_level(logging.WARNING):
        sums = Sums(file)
    assert "settled anew" in caplog.text and str(file) in caplog.text
    sums.shares.offer("a", 1, 3)
    assert sums.threads() == 3 and kept_threads(file, 1) == 3


# A coordinator that goes on --------------------------------------------------------------------------------
def start_of(sums, *hosts, wanted=2):
    """The threads that workers are told to compute with, whether they sum apart, and what people are told; ``hosts``:
    name and threads of each."""
    found = []

    async def scenario(job):
        agents = [await job.link(HELLO.model_copy(update={"agent": name, "host": name, "slots": 1, "threads": threads}))
                  for name, threads in hosts]
        for agent in agents:
            order = await expect(agent, m.Start)
            worker = await job.link(m.WorkerHello(worker=order.worker, pid=1))
            await worker.send(m.Ready())
            found.append((order.threads, worker))
        told = [wording.line("few_cores", None, event) for event in job.watcher.named("few_cores")]
        return [(threads, (await expect(worker, m.Seat)).apart) for threads, worker in found], told

    return run(scenario, wanted=wanted, sums=sums)


def test_a_job_that_is_taken_over_on_a_host_with_more_cores_computes_as_before(file):
    """It computed with 8 threads from then on, and its weights were others in the last bits."""
    assert start_of(Sums(file, workers=2), ("h1", 2), ("h2", 8)) == ([(2, False)] * 2, [])
    assert start_of(Sums(file, workers=2), ("h3", 8), ("h4", 8)) == ([(2, False)] * 2, [])


def test_a_host_with_fewer_cores_uses_as_many_threads_and_that_is_said(file):
    start_of(Sums(file, workers=2), ("h1", 2), ("h2", 2))
    places, (told,) = start_of(Sums(file, workers=2), ("h3", 1), ("h4", 2))
    assert places == [(2, False)] * 2
    assert told.startswith("warning: h3 has 1 core for each worker, but this run computes with 2 threads each")
    assert "launch.threads=1" in told


def test_the_order_of_sums_is_that_of_the_first_start(file):
    start_of(Sums(file, workers=4), ("h1", 1), ("h2", 1), ("h3", 1), ("h4", 1), wanted=4)

    async def scenario(job):
        agents = [await job.link(HELLO.model_copy(update={"agent": name, "host": host, "slots": 1}))
                  for name, host in (("a", "h1"), ("b", "h1"), ("c", "h2"), ("d", "h3"))]
        workers = []
        for agent in agents:
            workers.append(await job.link(m.WorkerHello(worker=(await expect(agent, m.Start)).worker, pid=1)))
            await workers[-1].send(m.Ready())
        return [(await expect(worker, m.Seat)).apart for worker in workers]

    assert run(scenario, wanted=4, sums=Sums(file, workers=4)) == [True] * 4


# Over hosts ------------------------------------------------------------------------------------------------
def settled(directory, cores: dict[str, int], **sections):
    """The job on hosts with four slots each, and what people are told of them."""
    hosts = of_list(",".join(f"{name}:4" for name in cores))
    party, said = Party({host: Met(host, None, {"cores": cores[host.name]}) for host in hosts}), []
    launch = JobLaunch(job(directory, **sections), 1, "lo", "/", "hvtrain run")
    launch, kept = hostrun._settled(launch, party, Network("eth0", "10.0.0.1"), follow=True)
    hostrun._greet(said.append, party, Network("eth0", "10.0.0.1"), kept)
    return launch, [line for line in said if "cores" in line or "core " in line]


def test_over_hosts_a_run_that_is_started_again_keeps_its_threads(tmp_path):
    launch, said = settled(tmp_path, {"h1": 8, "h2": 16})
    assert launch.job.launch.threads == 2 and launch.size == 8 and not said
    Sums(tmp_path / "sums.json", workers=launch.size, threads=chosen_threads(launch.job)).threads()
    launch, said = settled(tmp_path, {"h3": 16, "h4": 32})
    assert launch.job.launch.threads == 2 and not said
    launch, said = settled(tmp_path, {"h3": 16, "h5": 4})
    assert launch.job.launch.threads == 2
    assert [line.split(" for ")[0] for line in said] == ["warning: h5 has 1 core"]
    assert settled(tmp_path, {"h3": 16, "h4": 32}, launch={"threads": 3})[0].job.launch.threads == 3
    assert settled(tmp_path, {"h3": 16, "h4": 32}, checkpoint={"resume": "never"})[0].job.launch.threads == 4
    assert settled(tmp_path, {"h3": 16})[0].job.launch.threads == 4, "four workers instead of eight"
