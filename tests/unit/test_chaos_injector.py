"""The injector: every fault reaches its victim at its phase, as often as planned, whatever processes come and go."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from dataclasses import dataclass, field

import pytest

from hvtrain.chaos import injector as injecting
from hvtrain.chaos import registry
from hvtrain.chaos.injector import FaultOnPurpose, Injector
from hvtrain.chaos.plan import Plan
from hvtrain.chaos.registry import Registry, fired
from hvtrain.errors import EnvironmentNotReady, RoundBroken
from hvtrain.probe import PHASES

STEP = ("forward", "backward", "bucket", "reduced", "optimizer")


@dataclass
class Worker:
    rank: int = 0
    size: int = 4
    step: int = 0
    round: int = 1
    done: list = field(default_factory=list)

    def cut(self):
        self.done.append(("cut", self.step))

    def leave(self):
        self.done.append(("leave", self.step))


def plan_of(*faults, seed=0):
    return Plan.model_validate({"name": "p.yaml", "seed": seed, "faults": list(faults)})


def train(inject, worker, steps, phases=STEP):
    """Pass the phases of steps until ``steps`` are committed; (phase, step) where something was raised."""
    while worker.step < steps:
        for phase in phases:
            try:
                inject(phase)
            except (FaultOnPurpose, RoundBroken) as error:
                return phase, worker.step + 1, error
        worker.step += 1
        inject("committed")
    return None


def in_child(body):
    """Run ``body`` in a process of its own; its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            body()
        finally:
            os._exit(3)
    return pid


def test_it_raises_at_the_phase_of_the_step_that_it_names_and_says_which_plan(tmp_path):
    worker = Worker(rank=1)
    inject = Injector(plan_of({"kind": "raise", "step": 5, "phase": "reduced", "rank": 1}), tmp_path, worker)
    phase, step, error = train(inject, worker, 10)
    assert (phase, step) == ("reduced", 5)
    assert "raise rank 1 in reduced of step 5 (faults.0 of p.yaml)" in str(error)
    (claim,) = fired(tmp_path)
    assert (claim.kind, claim.rank, claim.step, claim.phase, claim.round, claim.pid) == (
        "raise", 1, 5, "reduced", 1, os.getpid())
    assert abs(claim.time - time.time()) < 30
    assert train(inject, worker, 10) is None  # step 5 again, and on


def test_the_step_of_committed_is_the_one_just_made(tmp_path):
    worker = Worker()
    inject = Injector(plan_of({"kind": "cut", "step": 3, "phase": "committed", "rank": 0}), tmp_path, worker)
    train(inject, worker, 6)
    assert worker.done == [("cut", 3)]


def test_a_replacement_does_not_do_it_again(tmp_path):
    plan = plan_of({"kind": "raise", "step": 2, "rank": 0})
    first, second = Worker(), Worker(round=2)
    assert train(Injector(plan, tmp_path, first), first, 4)
    assert train(Injector(plan, tmp_path, second), second, 4) is None
    assert len(fired(tmp_path)) == 1


def test_count_strikes_the_same_step_as_often_as_it_says(tmp_path):
    plan = plan_of({"kind": "fail", "step": 2, "rank": 0, "count": 3})
    worker, hits = Worker(), []
    inject = Injector(plan, tmp_path, worker)
    for worker.round in range(1, 7):
        result = train(inject, worker, 4)
        if result is None:
            break
        hits.append(result[:2])
    assert hits == [("bucket", 2)] * 3 and worker.round == 4
    assert [claim.number for claim in fired(tmp_path)] == [0, 1, 2]


def test_once_per_pass_of_a_step_though_micro_batches_pass_forward_several_times(tmp_path):
    worker = Worker()
    inject = Injector(plan_of({"kind": "cut", "step": 2, "rank": 0, "count": 5}), tmp_path, worker)
    train(inject, worker, 4, phases=("forward", "forward", "forward"))
    assert worker.done == [("cut", 1)]


@pytest.mark.parametrize("phase", ["start", "joining", "forming", "state", "evaluation"])
def test_phases_without_a_step_strike_the_first_time_from_their_round_on(tmp_path, phase):
    worker = Worker()
    inject = Injector(plan_of({"kind": "raise", "phase": phase, "round": 2, "rank": 0}), tmp_path, worker)
    inject(phase)
    worker.round = 3
    with pytest.raises(FaultOnPurpose):
        inject(phase)
    inject(phase)
    assert [claim.round for claim in fired(tmp_path)] == [3]


def test_a_step_with_a_passing_phase_is_the_earliest_one(tmp_path):
    worker = Worker(step=9)
    inject = Injector(plan_of({"kind": "leave", "phase": "evaluation", "step": 10, "rank": 0}), tmp_path, worker)
    inject("evaluation")
    worker.step = 20
    inject("evaluation")
    assert worker.done == [("leave", 20)]


def test_round_alone_is_the_first_pass_of_that_round(tmp_path):
    worker = Worker(step=7)
    inject = Injector(plan_of({"kind": "raise", "phase": "backward", "round": 2, "rank": 0}), tmp_path, worker)
    inject("backward")
    worker.round = 2
    assert train(inject, worker, 10)[:2] == ("backward", 8)


def test_ranks_are_those_of_the_moment(tmp_path):
    worker = Worker(rank=2)
    plan = plan_of({"kind": "cut", "step": 3, "rank": 1}, {"kind": "cut", "step": 3, "rank": 2})
    inject = Injector(plan, tmp_path, worker)
    worker.rank = 1
    train(inject, worker, 5)
    assert [claim.fault for claim in fired(tmp_path)] == [0]


def test_any_is_one_rank_chosen_by_the_seed(tmp_path):
    def victims(seed, size=4):
        directory = tmp_path / f"{seed}-{size}"
        for rank in range(size):
            worker = Worker(rank=rank, size=size)
            train(Injector(plan_of({"kind": "cut", "step": 2}, seed=seed), directory, worker), worker, 3)
        return [claim.rank for claim in fired(directory)]

    chosen = [victims(seed) for seed in range(20)]
    assert all(len(ranks) == 1 for ranks in chosen)
    assert {rank for ranks in chosen for rank in ranks} == {0, 1, 2, 3}
    assert victims(100, size=1) == [0]
    assert victims(3) == chosen[3]  # not struck again


def test_any_in_phases_that_not_all_pass_is_the_first_to_come(tmp_path):
    plan = plan_of({"kind": "raise", "phase": "joining", "round": 2, "count": 2})
    hits = 0
    for rank in (3, 1, 3, 0):
        try:
            Injector(plan, tmp_path, Worker(rank=rank, round=2))("joining")
        except FaultOnPurpose:
            hits += 1
    assert hits == 2 and [claim.rank for claim in fired(tmp_path)] == [3, 1]


def test_slow_takes_longer_for_so_many_steps_and_is_claimed_once(tmp_path, monkeypatch):
    slept, worker = [], Worker()
    inject = Injector(plan_of({"kind": "slow", "step": 3, "steps": 4, "seconds": 0.25, "rank": 0}), tmp_path, worker)
    monkeypatch.setattr(injecting.time, "sleep", lambda seconds: slept.append((worker.step + 1, seconds)))
    train(inject, worker, 12, phases=("forward", "forward", "backward"))
    assert slept == [(step, 0.25) for step in (3, 4, 5, 6)]
    assert len(fired(tmp_path)) == 1
    assert not inject._slow


def test_slow_where_there_are_no_steps_sleeps_at_once(tmp_path, monkeypatch):
    slept = []
    inject = Injector(plan_of({"kind": "slow", "phase": "forming", "seconds": 0.5, "rank": 0}), tmp_path, Worker())
    monkeypatch.setattr(injecting.time, "sleep", slept.append)
    inject("forming")
    inject("forming")
    assert slept == [0.5]


def test_hang_sleeps_on(tmp_path, monkeypatch):
    slept = []
    monkeypatch.setattr(injecting.time, "sleep", slept.append)
    Injector(plan_of({"kind": "hang", "phase": "forming", "rank": 0}), tmp_path, Worker())("forming")
    assert slept == [injecting.HANG_SECONDS]


def test_kill_really_kills_after_it_was_written_down(tmp_path):
    plan = plan_of({"kind": "kill", "step": 4, "phase": "bucket", "rank": 0})

    def body():
        worker = Worker()
        train(Injector(plan, tmp_path, worker), worker, 10)

    pid = in_child(body)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    (claim,) = fired(tmp_path)
    assert (claim.pid, claim.step, claim.phase, claim.struck) == (pid, 4, "bucket", True)
    survivor = Worker()
    assert train(Injector(plan, tmp_path, survivor), survivor, 10) is None


def test_stop_really_stops(tmp_path):
    plan = plan_of({"kind": "stop", "step": 2, "rank": 0})

    def body():
        worker = Worker()
        train(Injector(plan, tmp_path, worker), worker, 3)

    pid = in_child(body)
    try:
        _, status = os.waitpid(pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status) and os.WSTOPSIG(status) == signal.SIGSTOP
        assert [claim.pid for claim in fired(tmp_path)] == [pid]
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_the_ranks_of_a_list_wait_for_each_other(tmp_path):
    """Two at once: the first must not be gone, and its round cut, before the second has come to its phase."""
    plan = plan_of({"kind": "kill", "step": 2, "phase": "bucket", "rank": [0, 2]})

    def body(rank, delay):
        worker = Worker(rank=rank)
        inject = Injector(plan, tmp_path, worker)
        time.sleep(delay)
        train(inject, worker, 4)

    started = time.monotonic()
    first, second = in_child(lambda: body(0, 0.0)), in_child(lambda: body(2, 0.3))
    other = Worker(rank=1)
    assert train(Injector(plan, tmp_path, other), other, 4) is None  # whom it does not name it does not hold up
    for pid in (first, second):
        _, status = os.waitpid(pid, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL
    assert time.monotonic() - started < injecting.AT_ONCE_SECONDS
    assert sorted(claim.rank for claim in fired(tmp_path)) == [0, 2]


def test_a_rank_of_a_list_goes_alone_when_the_others_do_not_come(tmp_path, monkeypatch):
    monkeypatch.setattr(injecting, "AT_ONCE_SECONDS", 0.05)
    worker = Worker()
    inject = Injector(plan_of({"kind": "cut", "step": 2, "rank": [0, 3]}), tmp_path, worker)
    train(inject, worker, 4)
    assert worker.done == [("cut", 1)]


def test_several_processes_and_threads_get_one_claim(tmp_path):
    plan = plan_of({"kind": "raise", "phase": "joining"})
    winners, start = [], threading.Barrier(8)

    def try_it(rank):
        inject = Injector(plan, tmp_path, Worker(rank=rank))
        start.wait()
        try:
            inject("joining")
        except FaultOnPurpose:
            winners.append(rank)

    threads = [threading.Thread(target=try_it, args=(rank,)) for rank in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(winners) == 1 and fired(tmp_path)[0].rank == winners[0]


def test_stages_that_reach_a_phase_at_the_same_moment_are_one_worker(tmp_path):
    """Each stage of a worker passes forward in a thread of its own. One strike is one of them; the others go on."""
    def all_at_once(inject):
        begin, raised = threading.Barrier(8), []

        def stage():
            begin.wait()
            for _ in range(3):  # micro-batches
                try:
                    inject("bucket")
                except Exception as error:  # noqa: BLE001 - whatever comes is looked at below
                    raised.append(error)

        threads = [threading.Thread(target=stage) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return raised

    for attempt in range(20):  # which of the threads are in each other's way is a matter of chance
        worker = Worker(size=1)
        inject = Injector(plan_of({"kind": "fail", "step": 1, "count": 2}), tmp_path / str(attempt), worker)
        for worker.round, strikes in ((1, 1), (2, 1), (3, 0)):
            raised = all_at_once(inject)
            assert [type(error) for error in raised] == [RoundBroken] * strikes


def test_it_is_logged(tmp_path, caplog):
    worker = Worker(rank=2, step=5)
    inject = Injector(plan_of({"kind": "leave", "step": 6, "rank": 2}), tmp_path, worker)
    with caplog.at_level(logging.WARNING):
        inject("forward")
    assert ("leave rank 2 in forward of step 6 (faults.0 of p.yaml) strikes rank 2 in forward, step 6, round 1"
            in caplog.text)


def test_random_faults_are_not_its_business(tmp_path):
    worker = Worker()
    inject = Injector(plan_of({"kind": "kill", "every": "1ms"}), tmp_path, worker)
    for phase in PHASES:
        inject(phase)
    assert fired(tmp_path) == []


def test_a_claim_that_cannot_be_written_is_an_error_and_no_fault(tmp_path):
    (tmp_path / "chaos").write_text("in the way")
    with pytest.raises(EnvironmentNotReady, match="must write down what it does"):
        Injector(plan_of({"kind": "raise", "step": 1}), tmp_path, Worker())


def test_where_nothing_is_due_it_costs_microseconds(tmp_path):
    faults = [{"kind": "kill", "step": 10**6 + number, "rank": 0} for number in range(50)]
    worker = Worker()
    inject = Injector(plan_of(*faults, {"kind": "kill", "phase": "evaluation", "step": 10**6}), tmp_path, worker)
    started = time.perf_counter()
    train(inject, worker, 5000)
    assert (time.perf_counter() - started) / 5000 / 6 < 100e-6  # some 0.5 us; a hundred times that is a mistake


# The registry -----------------------------------------------------------------------------------------
def test_a_claim_without_its_account_was_not_struck(tmp_path):
    plan = plan_of({"kind": "kill", "step": 4, "rank": 0}, {"kind": "kill", "step": 5, "rank": 0})
    claims = Registry(plan, tmp_path)
    assert claims.claim(0, 0, 0, rank=0, pid=7, step=4, phase="forward", round=1)
    (path,) = registry.directory(tmp_path).iterdir()
    path.with_name(path.name.replace("000-", "001-")).write_text('{"fault": 1, "ki')
    (registry.directory(tmp_path) / "notes.json").write_text("{}")
    whole, torn = fired(tmp_path)
    assert (whole.fault, whole.struck, torn.fault, torn.struck, torn.kind) == (0, True, 1, False, "")


def test_claims_of_another_plan_in_the_same_directory_do_not_count(tmp_path):
    common = {"rank": 0, "pid": 7, "step": 4, "phase": "forward", "round": 1}
    first, second = (Registry(plan_of({"kind": "kill", "step": step, "rank": 0}), tmp_path) for step in (4, 5))
    assert first.claim(0, 0, 0, **common) and not first.claim(0, 0, 0, **common)
    assert second.claim(0, 0, 0, **common)


def test_a_claim_can_be_withdrawn(tmp_path):
    claims = Registry(plan_of({"kind": "kill", "every": "2s"}), tmp_path)
    common = {"rank": 2, "pid": 7, "step": 4, "phase": "", "round": 1}
    claim = claims.claim(0, 41, registry.RANDOM, **common)
    assert claims.taken(0, 41, registry.RANDOM)
    (path,) = registry.directory(tmp_path).iterdir()
    assert path.name.endswith("-random-41.json") and json.loads(path.read_text())["pid"] == 7
    claims.withdraw(claim, registry.RANDOM)
    claims.withdraw(claim, registry.RANDOM)
    assert fired(tmp_path) == []


def test_no_plan_no_claims(tmp_path):
    assert fired(tmp_path / "nowhere") == []
