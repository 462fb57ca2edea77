"""The drill's verdict on records as two runs leave them, and its own course around stand-ins for the runs."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from click.testing import CliRunner

from hvtrain.chaos import load
from hvtrain.chaos.plan import Plan
from hvtrain.chaos.registry import Claim, Registry
from hvtrain.checkpoint import Blob, Snapshot, Store, write
from hvtrain.cli.drill import drill as command
from hvtrain.data.sampler import GlobalSampler, split
from hvtrain.drill import conduct as conducting
from hvtrain.drill import runs
from hvtrain.drill.conduct import DrillFailed, conduct
from hvtrain.drill.defaults import default_plan
from hvtrain.drill.evidence import Evidence, gather
from hvtrain.drill.tables import text
from hvtrain.drill.verdict import judge
from hvtrain.drill.weights import Comparison, compare, compare_snapshots
from hvtrain.errors import UsageError
from hvtrain.report import ledger
from hvtrain.report.ledger import Committed, Records, Used

SAMPLER = GlobalSampler(100, 8, 0)
NAMED = {"length": 100, "global_batch": 8, "seed": 0, "shuffle": True, "drop_last": False, "weighted": False}
SAME = Comparison(("model", "optimizer"))
STEP_SECONDS = 0.1


def records(*rounds, sampler=SAMPLER):
    """The ledger of rounds given as (size, first step, last step, time of the first commit)."""
    result = Records(sampler=NAMED)
    steps = {number: item for number, item in zip(range(1, 61), sampler.walk())}
    for number, (size, first, last, began) in enumerate(rounds, 1):
        for step in range(first, last + 1):
            position, indices = steps[step]
            result.used += [Used(step, (1, number), rank, size, position.epoch, position.cursor,
                                 split(indices, rank, size)) for rank in range(size)]
            result.committed += [Committed(step, (1, number), began + STEP_SECONDS * (step - first))] * size
    return result


CALM = Evidence(0, 9.0, records=records((4, 1, 20, 100.0)))


def plan_of(*faults):
    return Plan.model_validate({"name": "p.yaml", "faults": list(faults)})


KILL = {"kind": "kill", "step": 11, "phase": "backward", "rank": 2}


def claim(fault=0, *, kind="kill", rank=2, step=11, phase="backward", round=1, time=101.0, **more):
    return Claim(fault, 0, kind, "", rank, 4711, step, phase, round, time, **more)


def judged(plan, disturbed, weights=SAME, calm=CALM):
    return judge("job.yaml", 4, 20, plan, calm, disturbed, weights)


def test_a_recovered_kill():
    lost = {"event": "worker_lost", "time": 101.02, "rank": 2, "cause": "killed", "step": 10}
    disturbed = Evidence(0, 12.0, claims=[claim()], events=[lost],
                         records=records((4, 1, 10, 100.0), (4, 11, 20, 101.45)))
    report = judged(plan_of(KILL), disturbed)
    assert report.ok and report.problems == ()
    (row,) = report.rows
    assert (row.outcome, row.next_round, row.cause, row.next_step, row.full) == ("recovered", 2, "killed", 0.45, 0.45)
    shown = text(report)
    assert "faults recovered  1 of 1" in shown and "identical to the bit (model, optimizer)" in shown
    assert "156 samples in 20 steps, 1 whole epoch: each used exactly once" in shown
    assert shown.endswith("All is well.")
    value = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert [value[key] for key in ("ok", "recovered", "faults", "once", "identical")] == [True, 1, 1, True, True]
    assert value["rows"][0]["next_step"] == 0.45


def test_smaller_for_a_while():
    """The next step comes before full strength; sums in another order may differ in bits, and do not fail the drill."""
    disturbed = Evidence(0, 12.0, claims=[claim()],
                         records=records((4, 1, 10, 100.0), (3, 11, 14, 103.2), (4, 15, 20, 104.0)))
    differ = Comparison(("model",), ("model",), 3e-8, "0.weight")
    report = judged(plan_of(KILL), disturbed, differ)
    assert report.ok and (report.rows[0].next_step, report.rows[0].full) == (2.2, 3.0)
    assert "largest difference of a weight 3e-08, in 0.weight (steps were computed by 3 and 4 workers" in text(report)


def test_different_weights_from_the_same_number_of_workers_are_not_well():
    disturbed = Evidence(0, 12.0, claims=[claim()], records=records((4, 1, 10, 100.0), (4, 11, 20, 101.45)))
    report = judged(plan_of(KILL), disturbed, Comparison(("model",), ("model",), 3e-8, "0.weight"))
    assert not report.ok and report.problems[0].startswith("weights: differ (model)")
    assert not judged(plan_of(KILL), disturbed, Comparison(problem="no checkpoint")).ok


def test_a_fault_that_never_struck():
    calm_like = Evidence(0, 9.0, records=CALM.records)
    report = judged(plan_of({**KILL, "rank": [1, 2]}), calm_like)
    assert not report.ok and [row.outcome for row in report.rows] == ["not struck"] * 2
    assert "fault 0 (kill ranks 1 and 2 in backward of step 11): not struck" in text(report)
    unwritten = Evidence(0, 9.0, records=CALM.records, claims=[Claim(0, 0, struck=False)])
    assert [row.outcome for row in judged(plan_of(KILL), unwritten).rows] == ["not struck"]


def test_a_fault_without_effect():
    disturbed = Evidence(0, 9.0, claims=[claim(kind="cut")], records=CALM.records)
    report = judged(plan_of({**KILL, "kind": "cut"}), disturbed)
    assert not report.ok and report.rows[0].outcome == "no effect"


def test_a_job_that_did_not_survive():
    disturbed = Evidence(144, 5.0, "rank 2 died", claims=[claim()], records=records((4, 1, 10, 100.0)))
    report = judged(plan_of(KILL), disturbed, Comparison(problem="there is no sound checkpoint in x"))
    assert report.rows[0].outcome == "not recovered"
    shown = text(report)
    assert "exit code 144: rank 2 died" in shown and "10 of 20 steps committed" in shown and "Not well:" in shown


def test_a_slow_worker_is_endured_and_so_is_the_loss_after_the_last_step():
    faults = plan_of({"kind": "slow", "step": 3, "rank": 1, "seconds": 0.1},
                     {"kind": "kill", "step": 20, "phase": "committed", "rank": 1})
    claims = [claim(kind="slow", step=3, time=100.2, rank=1), claim(1, step=20, phase="committed", time=101.9, rank=1)]
    report = judged(faults, Evidence(0, 9.0, claims=claims, records=CALM.records))
    assert [row.outcome for row in report.rows] == ["endured", "endured"] and report.ok
    assert "to the next step: -" in text(report)


def test_a_joiner_is_struck_in_the_round_that_may_still_form():
    faults = plan_of(KILL, {"kind": "kill", "phase": "joining", "round": 2})
    claims = [claim(), claim(1, step=0, phase="joining", round=2, time=101.3)]
    report = judged(faults, Evidence(0, 9.0, claims=claims, records=records((4, 1, 10, 100.0), (4, 11, 20, 101.9))))
    assert [(row.outcome, row.next_round, row.next_step) for row in report.rows] == [
        ("recovered", 2, 0.9), ("recovered", 2, 0.6)]


def test_a_rollback_is_told():
    rollback = {"event": "rollback", "time": 102.0, "source": "memory", "steps": 3}
    disturbed = Evidence(0, 9.0, claims=[claim()], events=[rollback],
                         records=records((4, 1, 10, 100.0), (4, 8, 20, 102.0)))
    report = judged(plan_of(KILL), disturbed)
    assert report.ok and report.ledger.repeated == 3
    assert "repeated: 3 (rolled back by 3 to the last snapshot in memory); begun again: 0" in text(report)


def test_random_faults_are_rows_as_they_came():
    claims = [claim(time=101.0), claim(time=101.5, round=2, step=13, phase="")]
    report = judged(plan_of({"kind": "kill", "every": "2s"}), Evidence(0, 9.0, claims=claims, records=records(
        (4, 1, 10, 100.0), (4, 11, 12, 101.4), (4, 13, 20, 101.8))))
    assert report.ok and [row.next_step for row in report.rows] == [0.4, 0.3]


def test_weighted_sampling_is_compared_with_the_undisturbed_run():
    weighted = GlobalSampler(100, 8, 0, weights=np.arange(100))
    calm = Evidence(0, 9.0, records=records((4, 1, 20, 100.0), sampler=weighted))
    disturbed = Evidence(0, 9.0, claims=[claim()],
                         records=records((4, 1, 10, 100.0), (4, 11, 20, 101.4), sampler=weighted))
    for evidence in (calm, disturbed):
        evidence.records.sampler = {**NAMED, "weighted": True}
    assert judged(plan_of(KILL), disturbed, calm=calm).ok
    disturbed.records.used.pop()
    assert "2 samples missing" in text(judged(plan_of(KILL), disturbed, calm=calm))


# The plan ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("workers, kinds", [(1, 6), (2, 7), (3, 8), (4, 8), (64, 8)])
def test_the_default_plan_suits_the_number_of_workers(workers, kinds):
    plan = default_plan(workers, 60, 256)
    assert len(plan.faults) == kinds
    steps = [fault.step for fault in plan.faults]
    assert steps == sorted(set(steps)) and min(b - a for a, b in zip(steps, steps[1:])) >= 4
    assert 2 < steps[0] and steps[-1] < 59
    assert all(rank < workers for fault in plan.faults for rank in fault.ranks)
    assert all(len(fault.ranks) < workers or workers == 1 for fault in plan.faults)
    assert {fault.at for fault in plan.faults} >= {"forward", "backward", "bucket", "reduced", "optimizer"}


def test_the_default_plan_suits_few_steps_and_small_batches():
    assert [fault.step for fault in default_plan(4, 6, 64).faults] == [4]
    assert len(default_plan(4, 20, 64).faults) == 4
    assert all(rank < 2 for fault in default_plan(8, 60, 2).faults for rank in fault.ranks)


# Weights -----------------------------------------------------------------------------------------------
def snapshot(step=20, more=0.0, **groups):
    weights = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([1.0 + more], np.float32)}
    tensors = {"model": weights, "optimizer": {"a.m": np.zeros(3, np.float64)}, **groups}
    return Snapshot(step=step, epoch=1, groups={group: {name: Blob.from_numpy(array) for name, array in found.items()}
                                                for group, found in tensors.items()}, state={}, world_size=4)


def test_weights_that_are_equal_and_weights_that_are_not():
    assert compare_snapshots(snapshot(), snapshot()).words == "identical to the bit (model, optimizer)"
    apart = compare_snapshots(snapshot(), snapshot(more=0.5))
    assert (apart.differing, apart.largest, apart.tensor, apart.identical) == (("model",), 0.5, "b", False)
    momenta = compare_snapshots(snapshot(), snapshot(optimizer={"a.m": np.ones(3)}))
    assert (momenta.differing, momenta.largest) == (("optimizer",), 0.0)
    assert compare_snapshots(snapshot(), snapshot(more=np.nan)).words.endswith("of a weight not a number, in b")
    assert compare_snapshots(snapshot(), snapshot(ema={"a": np.ones(3)})).differing == ("ema",)
    assert "step 20, the other step 19" in compare_snapshots(snapshot(), snapshot(step=19)).problem


def test_checkpoints_on_disk(tmp_path):
    for name in ("left", "right"):
        save(tmp_path / name, snapshot())
    assert compare(tmp_path / "left", tmp_path / "right").identical
    assert "no sound checkpoint in" in compare(tmp_path / "left", tmp_path / "nowhere").problem


def save(directory, snapshot):
    write(Store(directory), snapshot)


# The course --------------------------------------------------------------------------------------------
JOB = """\
task: {target: "task:Task"}
data: {global_batch: 8}
train: {epochs: 3, early_stopping: {metric: loss}}
checkpoint: {every: 1 epoch, best: accuracy}
run: {dir: runs/mine}
"""


@pytest.fixture
def job(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("HVTRAIN_")]:
        monkeypatch.delenv(name)
    (tmp_path / "job.yaml").write_text(JOB)
    return "job.yaml"


@pytest.fixture
def stage(monkeypatch):
    """Replaces ``hvtrain run`` by something that leaves what it would leave; the arguments of each call.

    ``codes`` are exit codes by call, from 1.
    """
    calls = []

    def play(arguments, output, limit):
        from hvtrain.config import load as load_job

        calls.append(arguments)
        overrides = arguments[2:arguments.index("--chaos")] if "--chaos" in arguments else arguments[2:]
        job = load_job(arguments[1], overrides)
        assert job.log.ledger and job.train.steps == 20 and job.checkpoint.resume == "never"
        plan = load(arguments[-1]) if "--chaos" in arguments else None
        play_run(job, plan)
        output.write_text("a line of output\n")
        return runs.Ended(play.codes.get(len(calls), 0), 1.5)

    play.codes = {}
    monkeypatch.setattr(runs, "run", play)
    play.calls = calls
    return play


def play_run(job, plan):
    directory = os.path.abspath(job.run.dir)
    writer = ledger.Ledger(os.path.join(ledger.directory(directory), "w0.jsonl"))
    writer.sampler(SAMPLER)
    round = 1
    for step, (position, indices) in zip(range(1, 21), SAMPLER.walk()):
        for index, fault in enumerate(plan.faults if plan else ()):
            if fault.step == step:
                for rank in fault.ranks:
                    Registry(plan, directory).claim(index, 0, rank, rank=rank, pid=1, step=step, phase=fault.at,
                                                    round=round)
                round += 1
        writer.used(step, round, 0, 1, position.epoch, position.cursor, indices)
        writer.committed(step, round)
    writer.close()
    save(os.path.join(directory, "checkpoints"), snapshot())
    with open(os.path.join(directory, "status.json"), "w") as file:
        json.dump({"reason": "done"}, file)


def run_drill(job, *overrides, **more):
    settings = {"workers": 4, "plan_path": None, "steps": 20, "limit": 60.0, "say": lambda words: None}
    return conduct(job, overrides, **{**settings, **more})


def test_two_runs_and_a_report(job, stage, tmp_path):
    report = run_drill(job)
    assert report.ok and len(report.rows) == 4
    calm, disturbed = stage.calls
    assert "--chaos" not in calm and "run.dir=runs/mine.drill/undisturbed" in calm and "launch.workers=4" in calm
    assert disturbed[-2:] == ["--chaos", "runs/mine.drill/plan.yaml"]
    assert "run.dir=runs/mine.drill/disturbed" in disturbed
    kept = json.loads((tmp_path / "runs" / "mine.drill" / "report.json").read_text())
    assert kept["ok"] and kept["recovered"] == 4
    assert run_drill(job).ok  # a second drill takes the place of the first


def test_the_users_own_settings_and_plan_hold(job, stage, tmp_path):
    (tmp_path / "plan.yaml").write_text("faults: [{kind: kill, step: 5, phase: forward, rank: 1}, "
                                        "{kind: kill, phase: evaluation, rank: 0}]")
    report = run_drill(job, "optim.lr=0.5", "data.sampling=uniform", plan_path="plan.yaml")
    assert [row.outcome for row in report.rows] == ["recovered", "not struck"] and not report.ok
    assert "optim.lr=0.5" in stage.calls[0] and "eval.every=6 steps" in stage.calls[0]


def test_mistakes_are_said_before_anything_runs(job, stage, tmp_path):
    (tmp_path / "plan.yaml").write_text("faults: [{kind: kill, step: 500, rank: 9}]")
    with pytest.raises(ValueError, match="2 mistakes in the plan"):
        run_drill(job, plan_path="plan.yaml")
    with pytest.raises(ValueError, match="did you mean lr"):
        run_drill(job, "optim.lrr=3")
    with pytest.raises(UsageError, match="leave out checkpoint.every=null"):
        run_drill(job, "checkpoint.every=null")
    (tmp_path / "runs" / "mine.drill").mkdir(parents=True)
    (tmp_path / "runs" / "mine.drill" / "precious").write_text("")
    with pytest.raises(UsageError, match="is not from a drill"):
        run_drill(job)
    assert not stage.calls and (tmp_path / "runs" / "mine.drill" / "precious").exists()


def test_one_drill_at_a_time(job, stage):
    with conducting._taken(conducting.Path("runs/mine.drill")):
        with pytest.raises(UsageError, match="another drill is using"):
            run_drill(job)


def test_an_undisturbed_run_that_fails_ends_the_drill_with_its_exit_code(job, stage):
    stage.codes[1] = 1
    with pytest.raises(DrillFailed, match="exit code 1.*(?s:.)*a line of output") as error:
        run_drill(job)
    assert error.value.exit_code == 1 and len(stage.calls) == 1


def test_the_command(job, stage):
    result = CliRunner().invoke(command, [job, "-np", "4", "--steps", "20"], standalone_mode=False)
    assert result.return_value == 0 and "faults recovered  4 of 4" in result.stdout
    result = CliRunner().invoke(command, [job, "-np", "4", "--steps", "20", "--json"], standalone_mode=False)
    assert json.loads(result.stdout)["ok"]
    stage.codes[6] = 144
    result = CliRunner().invoke(command, [job, "-np", "4", "--steps", "20"], standalone_mode=False)
    assert result.return_value == 1 and "exit code 144" in result.stdout
    assert CliRunner().invoke(command, [job, "--limit", "soon"]).exit_code == 2


# Starting runs -----------------------------------------------------------------------------------------
def test_a_run_is_started_and_its_output_kept(tmp_path):
    ended = runs.run(["--version"], tmp_path / "out.txt", 60.0)
    assert ended.code == 0 and not ended.late and "hvtrain" in (tmp_path / "out.txt").read_text()


def test_a_run_that_takes_too_long_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(runs.sys, "executable", str(tmp_path / "sleeper"))
    (tmp_path / "sleeper").write_text("#!/bin/sh\nexec sleep 100\n")
    (tmp_path / "sleeper").chmod(0o755)
    ended = runs.run([], tmp_path / "out.txt", 0.3)
    assert ended.late and ended.code == -15 and ended.seconds < 20


def test_evidence_of_a_run_that_left_nothing(tmp_path):
    evidence = gather(tmp_path / "nowhere", 3, 0.1)
    assert (evidence.code, evidence.events, evidence.claims, evidence.reason) == (3, [], [], "")
    (tmp_path / "events.jsonl").write_text('{"event": "round"}\n[]\n{"eve')
    assert gather(tmp_path, 0, 1.0).events == [{"event": "round"}]
