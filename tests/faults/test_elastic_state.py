"""All who hold the training's state are lost: the job goes on from memory, from disk, or from its beginning, and says so."""

from __future__ import annotations

import os
import signal

from tests.support.whole_job import STEPS, WHOLE


def rollbacks(run) -> list[tuple]:
    return [(event["source"], event["step"]) for event in run.events("rollback")]


def test_a_single_worker_goes_on_from_the_snapshot_in_memory(run, calm):
    """Killed before there is a snapshot, it begins anew."""
    run.run(*WHOLE, "elastic.snapshot_every=10 steps", workers=1, faults=[
        {"kind": "kill", "phase": "forward", "step": 4, "rank": 0},
        {"kind": "kill", "phase": "reduced", "step": 24, "rank": 0},
        {"kind": "kill", "phase": "optimizer", "step": 57, "rank": 0},
    ])
    assert len(run.struck()) == len(run.events("worker_lost")) == 3
    assert rollbacks(run) == [("start", 0), ("memory", 20), ("memory", 50)]
    assert [event["steps"] for event in run.events("rollback")] == [3, 3, 6]
    assert run.exact(STEPS).repeated == 3 + 3 + 6
    assert run.ending() == calm(1) and run.gone()


def test_processes_above_the_workers_are_killed(run, calm):
    """The warm process takes its workers along, the agent also the snapshots; both are replaced."""
    run.start(*WHOLE, "elastic.snapshot_every=5 steps", "checkpoint.every=40 steps", "task.args.slow=0.02", workers=4)
    for name, step in (("agent", 3), ("warm", 12), ("agent", 50)):
        run.until_step(step)
        os.kill(run.pid(f"hvtrain-{name}"), signal.SIGKILL)
        before = len(run.events("rollback"))
        run.until(lambda: len(run.events("rollback")) > before, f"going on after the {name}'s death")
    assert run.wait().returncode == 0
    (first, begin), (second, kept), (third, saved) = rollbacks(run)
    assert (first, second, third) == ("start", "memory", "checkpoint")
    assert begin == 0 and kept >= 10 and kept % 5 == 0 and saved == 40
    assert len(run.events("warm_restarted")) == 1
    told = sum(event["steps"] for event in run.events("rollback"))
    # With the agent goes the knowledge of the very last step: nobody may have lived to tell of it.
    assert told <= run.exact(STEPS).repeated <= told + 4
    assert run.ending() == calm(4) and run.gone()
    steps = [record["step"] for record in run.records("metrics.jsonl") if record["kind"] == "train"]
    assert steps == list(range(1, STEPS + 1)), "a repeated step must not stand in metrics.jsonl twice"


def test_the_launcher_is_killed_and_the_same_command_goes_on(run, calm):
    """The workers, who hear nobody any more, save their last step and end; so nothing at all is lost."""
    settings = (*WHOLE, "checkpoint.every=50 steps", "task.args.slow=0.02")
    run.start(*settings, workers=4)
    run.until_step(15)
    os.kill(run.process.pid, signal.SIGKILL)
    assert run.wait().returncode == -signal.SIGKILL
    assert run.gone(20)
    saved = run.ending()["step"]
    assert saved >= 15 and saved % 50, "a checkpoint where no regular one was due"
    run.run(*settings, workers=4)
    assert [event["step"] for event in run.events("resumed")] == [saved]
    assert run.exact(STEPS).repeated == 0
    assert run.ending() == calm(4) and run.gone()
