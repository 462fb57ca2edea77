"""What a person is told about a job, and which sizes are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hvtrain.control import messages as m
from hvtrain.control.overview import describe, judge_scale, present
from hvtrain.control.roster import Agent, Limits, Phase, Round, Stage, State, Status, Worker

LIMITS = Limits(start=10.0, stop=5.0, heartbeat=5.0, min_workers=2, max_workers=6)
STATE = State(
    wanted=3, limits=LIMITS, phase=Phase.OPEN, progress=12,
    agents={"b": Agent("beta", 4), "a": Agent("alpha", 4, leaving=True)},
    workers={"w3": Worker("b", 3, 0, stage=Stage.STARTING, local=1),
             "w1": Worker("b", 1, 1, stage=Stage.SEATED, step=12),
             "w0": Worker("a", 0, 0, stage=Stage.SEATED, step=11, leave=True),
             "w2": Worker("b", 2, 2, stage=Stage.DOOMED)},
    round=Round(4, Status.ACTIVE, members=("w0", "w1", "w2")))


def test_agents_and_workers():
    found = describe(STATE, {"a": 10, "b": 20, "w0": 30, "w1": 31, "w2": 32})
    assert found.agents == [
        {"agent": "a", "host": "alpha", "slots": 4, "pid": 10, "state": "leaving", "workers": 1},
        {"agent": "b", "host": "beta", "slots": 4, "pid": 20, "state": "here", "workers": 3}]
    keys = ("worker", "host", "slot", "pid", "rank", "round", "step", "state")
    assert [tuple(worker[key] for key in keys) for worker in found.workers] == [
        ("w0", "alpha", 0, 30, 0, 4, 11, "leaving soon"), ("w1", "beta", 0, 31, 1, 4, 12, "training"),
        ("w2", "beta", 0, 32, 2, 4, 0, "being killed"), ("w3", "beta", 1, None, None, None, 0, "starting")]
    assert found.job == {"phase": "open", "round": 4, "status": "active", "size": 2, "target": 3, "step": 12}
    assert m.decode_outbound(m.encode(found)) == found


@pytest.mark.parametrize("status, word", [(Status.FORMING, "connecting"), (Status.PAUSING, "pausing"),
                                          (Status.ACTIVE, "training")])
def test_what_a_member_does(status, word):
    state = STATE.in_round(status=status)
    assert describe(state, {}).workers[1]["state"] == word


@pytest.mark.parametrize("stage, word", [(Stage.READY, "standing by"), (Stage.RETURNING, "recovering"),
                                         (Stage.FINISHED, "finished"), (Stage.LEAVING, "leaving")])
def test_where_a_worker_stands(stage, word):
    assert describe(STATE.worker("w1", stage=stage), {}).workers[1]["state"] == word


def test_before_anything_is_there():
    found = describe(State(wanted=2, limits=LIMITS), {})
    assert (found.agents, found.workers, found.job["round"], found.job["size"]) == ([], [], 0, 0)


def test_who_is_present():
    assert present(STATE) == ["w1", "w0"]
    assert present(STATE.worker("w1", stage=Stage.RETURNING).worker("w0", stage=Stage.LEAVING)) == ["w1"]


def test_a_thousand_hosts_fit_into_one_message():
    agents = {f"node-{n:04d}.cluster.example": Agent(f"node-{n:04d}.cluster.example", 8) for n in range(1000)}
    workers = {f"w{n}": Worker(name, n, n, stage=Stage.SEATED, step=10**6) for n, name in enumerate(agents)}
    state = State(wanted=1000, limits=LIMITS, phase=Phase.OPEN, agents=agents, workers=workers,
                  round=Round(1, Status.ACTIVE, members=tuple(workers)))
    assert len(m.encode(describe(state, {name: 4_000_000 for name in [*agents, *workers]}))) < m.MAX_BYTES / 2


@pytest.mark.parametrize("workers, changes, words", [
    (1, {}, "elastic.min_workers (2)"), (7, {}, "elastic.max_workers (6)"), (5, {}, "the agents have 4 slots"),
    (4, {"stop_signal": 15}, "the job is stopping"), (4, {"phase": Phase.ENDING}, "the job is ending"),
    (4, {"phase": Phase.GATHERING}, "the job is gathering"),
    (4, {"limits": replace(LIMITS, elastic=False)}, "elastic.enabled is false")])
def test_sizes_that_cannot_be(workers, changes, words):
    accepted, text = judge_scale(replace(STATE, **changes), workers)
    assert not accepted and words in text


def test_sizes_that_can():
    assert judge_scale(STATE, 4) == (True, "from 3 to 4 workers")
    assert judge_scale(STATE, 3) == (True, "it has 3 workers already")
    assert judge_scale(replace(STATE, limits=replace(LIMITS, min_workers=1)), 1) == (True, "from 3 to 1 worker")
