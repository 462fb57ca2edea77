"""What benchmarks/recovery.py makes of the workers' step lines, and whom it breaks."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

from disturbance import Disturbance, Plan  # noqa: E402
from outages import Line, complete, outage, step_milliseconds, summary  # noqa: E402
from steplog import StepLog, StepReader  # noqa: E402


def world(step, at, *pids):
    """Lines of a step that all of a world have committed, 1 ms apart."""
    return [Line(pid, rank, len(pids), step, at + rank / 1000) for rank, pid in enumerate(pids)]


def four(*steps):
    """The lines of steps 1 .. of four workers: 11 12 13 14, one a second, or as given by number: time."""
    return [line for step in steps for line in world(step, float(step), 11, 12, 13, 14)]


# Outages -------------------------------------------------------------------------------------------------
def test_a_replacement_in_time_is_next_step_and_full_strength_at_once():
    lines = four(1, 2) + world(3, 2.9, 11, 12, 23, 14)
    found = outage(lines, time=2.5, victims={13: 2}, strength=4)
    assert found.next_seconds == found.full_seconds == pytest.approx(0.403)
    assert (found.lost, found.ranks, found.size_after) == (0, (2,), 4)


def test_a_step_that_the_victim_had_given_its_share_to_is_not_recovery():
    survivors = [line for line in world(3, 2.501, 11, 12, 13, 14) if line.pid != 13]
    found = outage(four(1, 2) + survivors, time=2.5, victims={13: 2}, strength=4)
    assert found.next_seconds is None and found.lost is None
    found = outage(four(1, 2) + survivors + world(4, 3.0, 11, 12, 23, 14), time=2.5, victims={13: 2}, strength=4)
    assert found.next_seconds == pytest.approx(0.503) and found.lost == 0


def test_a_line_that_the_victim_wrote_as_it_was_struck_is_not_recovery_either():
    found = outage(four(1, 2) + world(3, 2.501, 11, 12, 13, 14), time=2.5, victims={13: 2}, strength=4)
    assert found.next_seconds is None


def test_a_shrunk_world_steps_first_and_is_at_full_strength_later():
    lines = four(1, 2) + world(3, 2.8, 11, 12, 14) + world(4, 2.9, 11, 12, 14) + world(5, 6.0, 11, 12, 14, 25)
    found = outage(lines, time=2.5, victims={13: 2}, strength=4)
    assert found.next_seconds == pytest.approx(0.302) and found.full_seconds == pytest.approx(3.503)
    assert (found.lost, found.size_after) == (0, 3)
    found = outage([line for line in lines if line.step < 5], time=2.5, victims={13: 2}, strength=4)
    assert found.full_seconds is None and found.next_seconds is not None


def test_steps_that_are_done_again_are_lost():
    half = [line for line in world(4, 4.0, 11, 12, 13, 14) if line.pid != 13]
    restarted = world(3, 9.0, 31, 32, 33, 34) + world(4, 9.1, 31, 32, 33, 34)
    found = outage(four(1, 2, 3) + half + restarted, time=3.99, victims={13: 2}, strength=4)
    assert found.lost == 2  # 3, which all had committed, and 4, which some had
    assert found.next_seconds == pytest.approx(5.013)


def test_all_at_once():
    lines = four(1, 2, 3) + world(2, 8.0, 31, 32, 33, 34)
    found = outage(lines, time=3.5, victims={11: 0, 12: 1, 13: 2, 14: 3}, strength=4)
    assert (found.lost, found.ranks) == (2, (0, 1, 2, 3))


def test_complete_wants_every_rank_once():
    assert [step.number for step in complete(four(1, 2))] == [1, 2]
    assert complete(world(1, 1.0, 11, 12, 11, 14)) == []
    assert complete([line for line in four(1) if line.rank]) == []
    assert complete(four(1), after=1.0005) == []
    again = four(1) + world(1, 5.0, 11, 12, 13, 14)
    assert [step.time for step in complete(again)] == [pytest.approx(5.003)]
    assert complete(four(3))[0].pids == (11, 12, 13, 14)


# Figures -------------------------------------------------------------------------------------------------
def test_never_counts_as_larger_than_any_number():
    assert summary([1.0, None, 3.0]) == {"count": 3, "never": 1, "median": 3.0, "p95": None, "min": 1.0, "max": None}
    assert summary([1.0, None])["median"] is None
    assert summary([])["median"] is None
    assert summary([None])["min"] is None


def test_percentile_is_by_nearest_rank():
    values = [float(value) for value in range(1, 31)]
    random.Random(0).shuffle(values)
    found = summary(values)
    assert (found["median"], found["p95"], found["min"], found["max"]) == (15.5, 29.0, 1.0, 30.0)
    assert summary([2.0])["p95"] == 2.0


def test_step_time_leaves_outages_out():
    times = {1: 1.0, 2: 1.05, 3: 1.1, 4: 9.0, 5: 9.05}
    steps = complete([line for step, at in times.items() for line in world(step, at, 1)])
    assert step_milliseconds(steps, [(1.12, 9.0)]) == pytest.approx(50)
    assert step_milliseconds(steps[:1], []) is None
    assert step_milliseconds(steps, [(0.0, 10.0)]) is None


# Step files ----------------------------------------------------------------------------------------------
def test_lines_come_back_in_order_and_whole(tmp_path):
    log, reader = StepLog(tmp_path, 0.0), StepReader(tmp_path)
    log.done(1, 0, 2)
    log.done(2, 0, 2)
    first = reader.new()
    assert [(line.step, line.rank, line.size) for line in first] == [(1, 0, 2), (2, 0, 2)]
    assert first[0].time <= first[1].time <= time.time()
    with open(tmp_path / "77.jsonl", "w") as other:
        other.write('{"pid": 77, "rank": 1, "size": 2, "step": 1, "time": 5.0}\n{"pid": 77, "ra')
        other.flush()
        assert [line.pid for line in reader.new()] == [77]
        other.write('nk": 1, "size": 2, "step": 2, "time": 6.0}\n')
    assert [line.step for line in reader.new()] == [2]
    assert reader.new() == []


def test_steps_take_the_period(tmp_path):
    log = StepLog(tmp_path, 0.03)
    for step in range(1, 5):
        log.done(step, 0, 1)
    times = [line.time for line in StepReader(tmp_path).new()]
    assert all(later - sooner >= 0.029 for sooner, later in zip(times[1:], times[2:]))


# Breaking ------------------------------------------------------------------------------------------------
class FakeJob:
    """Workers that are sleeping processes; each look lets them commit one step, a lost one is replaced after three."""

    def __init__(self, workers=3, steps=1000, replace=True):
        self.setup = SimpleNamespace(workers=workers, period=0.001, phase="")
        self.steps, self._replace, self._missed, self._step = steps, replace, 0, 0
        self.process = SimpleNamespace(poll=lambda: None)
        self.lines: list[Line] = []
        self.processes = [self._start() for _ in range(workers)]
        self.bystander = self._start()

    def _start(self):
        return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])

    def look(self):
        gone = [rank for rank, process in enumerate(self.processes) if process.poll() is not None]
        if gone:
            self._missed += 1
            if not self._replace or self._missed < 3:
                return True
            for rank in gone:
                self.processes[rank] = self._start()
            self._missed = 0
        self._step += 1
        self.lines += world(self._step, time.time(), *(process.pid for process in self.processes))
        return True

    def owns(self, pid):
        return any(process.pid == pid and process.poll() is None for process in self.processes)

    def close(self):
        for process in [*self.processes, self.bystander]:
            process.kill()
            process.wait()


@pytest.fixture
def fake():
    jobs = []

    def make(**settings):
        jobs.append(FakeJob(**settings))
        return jobs[-1]

    yield make
    for job in jobs:
        job.close()


def plan(**settings):
    return Plan(**{"settle": 3, "spread": 0.01, "patience": 5.0, "full_patience": 0.1, "start": 5.0, **settings})


def test_a_job_is_broken_as_often_as_asked_and_only_workers_are(fake):
    job = fake()
    disturbance = Disturbance(job, plan(), random.Random(1))
    disturbance.run(2)
    assert disturbance.ending == "all faults done"
    assert [found.lost for found in disturbance.outages] == [0, 0]
    assert all(found.full_seconds is not None and found.full_seconds < 3 for found in disturbance.outages)
    assert job.bystander.poll() is None


@pytest.mark.parametrize("rank, allowed", [("0", {(0, 1), (0, 2)}), ("other", {(1, 2)})])
def test_who_is_hit(fake, rank, allowed):
    disturbance = Disturbance(fake(), plan(rank=rank, at_once=2), random.Random(2))
    disturbance.run(1)
    assert disturbance.outages[0].ranks in allowed


def test_a_job_that_does_not_come_back_is_given_up(fake):
    disturbance = Disturbance(fake(replace=False), plan(patience=0.3), random.Random(3))
    disturbance.run(5)
    assert disturbance.ending == "not at full strength again"
    assert [found.next_seconds for found in disturbance.outages] == [None]


def test_a_job_is_not_broken_shortly_before_its_end(fake):
    chosen = plan(spread=0.0)
    disturbance = Disturbance(fake(steps=chosen.reserve(0.001) + 1), chosen, random.Random(4))
    disturbance.run(5)
    assert (disturbance.ending, disturbance.outages) == ("no steps left", [])


def test_a_job_has_room_for_its_faults():
    chosen = Plan()
    assert chosen.steps(10, 0.05) >= 10 * (chosen.settle + chosen.spread / 0.05) + chosen.reserve(0.05)
