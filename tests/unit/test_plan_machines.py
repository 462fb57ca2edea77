"""``hvtrain plan`` for machines that are there and for others: whom it has train, what it says of the job file's own shape."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from hvtrain.config import load
from hvtrain.config.hybrid import HybridConfig
from hvtrain.hybrid.measurement import Measurement, key
from hvtrain.hybrid.speeds import Speeds
from hvtrain.launch import measurer, planning
from tests.unit.test_plan_cli import COSTS, job, keep, run

__all__ = ["job"]  # the fixture


@pytest.fixture
def two_cores(monkeypatch):
    monkeypatch.setattr(planning, "cores", lambda: 2)


def processor(path, costs=COSTS, **threaded):
    """Has a measurement of ``costs`` with one thread, and with two in ``threaded`` seconds, lie in the run."""
    job = load(path)
    whole = job.model_copy(update={"hybrid": job.hybrid or HybridConfig()})
    layers = tuple(replace(layer, **threaded) for layer in costs.layers)
    speeds = Speeds((costs,), threaded=(replace(costs, layers=layers),) if threaded else (), threads=2 if threaded else 1)
    measurer.keep(job.run.dir, Measurement(speeds, key=key(whole, measurer.hardware()), threads=64,
                                           sizes=measurer.sizes(whole, job.launch.workers or 1)))


def test_the_file_is_judged_with_the_workers_that_it_has(job, two_cores):
    """`hvtrain run` trained 2 replicas x 2 stages, and the plan said that 1 x 2 fits no shape: on two cores there is room for
    one replica of two stages, but threads may be more than cores, and the samples are then shared by two."""
    with open(job, "a") as file:
        file.write("hybrid: {stages: 2, microbatches: 1, memory: 60GB}\nlaunch: {workers: 2}\n")
    processor(job)
    output = run(job, "data.global_batch=512").stdout
    assert "as the job file has it: 2 replicas x 2 stages, 1 micro-batch, layers split as" in output
    alone = run(job, "launch.workers=null").stdout  # one worker, as `hvtrain run` would have
    assert "as the job file has it: impossible. The model fits in no shape: 1 replica x 2 stages" in alone
    # Of machines that it is to be planned for the file says nothing.
    elsewhere = run(job, "--nodes", "4", "--devices", "8", "--memory", "80GB").stdout
    assert "as the job file has it: 16 replicas x 2 stages" in elsewhere


def test_more_stages_than_devices_are_impossible(job):
    """4 replicas x 2 stages were promised on 4 machines with a device each."""
    with open(job, "a") as file:
        file.write("hybrid: {stages: 2}\nlaunch: {workers: 2}\n")
    keep(job, sizes=(1, 512))
    output = run(job, "--nodes", "4", "--devices", "1").stdout
    assert "as the job file has it: impossible. 2 stages need 2 devices on each machine, there is 1 (--devices)" in output
    assert "4 machines, each with 1 device, network" in output
    assert "train so with:  horovodrun -np 4 -H HOST1:1,HOST2:1,... hvtrain run" in output


def test_no_more_processes_are_started_than_there_are_samples_for(job):
    """`horovodrun -np 64000` was to train with 32 samples a step."""
    overrides = ("data.global_batch=32",)
    keep(job, *overrides)
    output = run(job, *overrides, "--nodes", "1000", "--devices", "64").stdout
    assert "so it takes 1 of the 1000 machines; a larger data.global_batch has use for more." in output
    assert output.splitlines()[-1] == f"train so with:  hvtrain run {job} -np 32 data.global_batch=32"
    several = run(job, *overrides, "--nodes", "1000", "--devices", "4").stdout
    assert "so it takes 8 of the 1000 machines" in several and "-np 32 -H HOST1:4,HOST2:4,... hvtrain run" in several
    assert json.loads(run(job, *overrides, "--nodes", "1000", "--devices", "4", "--json").stdout)["machines"] == 8


def test_a_single_process_with_all_threads_stands_in_the_table(job, two_cores):
    """It is recommended with what it takes: one worker, no section for stages, no least number of workers."""
    with open(job, "a") as file:
        file.write("hybrid: {stages: 2}\nlaunch: {workers: 2}\nelastic: {min_workers: 2}\n")
    processor(job, forward=0.01, backward=0.02)
    lines = run(job).stdout.splitlines()
    rows = [tuple(line[3:].split()[:4]) for line in lines if " x " in line[:12]]
    assert "THREADS" in lines[3] and ("1", "x", "1", "2") in rows and ("2", "x", "1", "1") in rows
    # Without recomputation 1 x 1, 2 x 1, 1 x 2, with it the fastest for each number of stages; and the recommended one,
    # which is hardly slower than one of these, but simpler.
    assert len(rows) == 3 + 2 + 1
    words = lines[-1].split()
    assert words[words.index("-np") + 1] == "1" and "hybrid=null" in words and "elastic.min_workers=1" in words
    load(job, [*(word for word in words if "=" in word), "launch.workers=1"])  # is a valid job


def test_threads_that_the_file_chooses_are_kept(job, two_cores):
    processor(job, forward=0.01, backward=0.02)
    values = json.loads(run(job, "launch.threads=1", "--json").stdout)
    assert {found["threads"] for found in values["predictions"]} == {1}
    assert values["recommended"]["shape"]["replicas"] == 2


@pytest.mark.parametrize("option, value", [
    ("--speed", "inf"), ("--speed", "-inf"), ("--speed", "nan"), ("--speed", "0"), ("--speed", "-1"), ("--speed", "1e-320"),
    ("--speed", "1e308"), ("--memory", "inf"), ("--memory", "nanGB"), ("--memory", "9" * 400 + "GB"), ("--bandwidth", "inf"),
    ("--bandwidth", "nanGB"), ("--bandwidth", "9" * 400 + "GB"), ("--link", "infGB"), ("--link", "9" * 400 + "GB")])
def test_numbers_that_are_none_are_refused_at_once(job, option, value, monkeypatch):
    """--speed inf ended in a ZeroDivisionError, and nan in a message about something else, both after the measuring."""
    monkeypatch.setattr(measurer, "obtain", None)
    done = run(job, option, value)
    assert done.exit_code == 2 and "Invalid value for" in done.stderr and option in done.stderr
