"""Stages under real launchers: what is measured and settled before workers start, and horovodrun's slots in groups."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.support.runs import Run

STEPS = ("train.epochs=null", "train.steps=40", "hybrid={stages: 2, microbatches: 4}")


def test_four_slots_are_two_workers_of_two_stages(tmp_path):
    """`horovodrun -np 4` with two stages trains as `hvtrain run -np 2` does, to the bit, although a worker is killed in it.

    The split is measured, and told to all processes by the first. Two of them stand by, without a process to fork workers
    from.
    """
    launcher = Path(sys.executable).parent / "horovodrun"
    if not launcher.exists():
        pytest.fail(f"{launcher} is missing: the engine is not installed in this environment")
    alone, under = Run(tmp_path, "alone"), Run(tmp_path, "under")
    alone.run(*STEPS, workers=2)
    under.start(*STEPS, "task.args.slow=0.05", prefix=(str(launcher), "-np", "4"),
                faults=[{"kind": "kill", "step": 20, "phase": "bucket", "rank": 1}])
    under.until_step(5)
    names = sorted(under.pids().values())
    assert names.count("hvtrain-warm") == 2 and sum(name.startswith("hvtrain-w") for name in names) == 4, names
    done = under.wait()
    assert done.returncode == 0, under.logs()
    assert len(under.struck()) == len(under.events("worker_lost")) == 1
    assert under.records("metrics.jsonl")[0]["world_size"] == alone.records("metrics.jsonl")[0]["world_size"] == 2
    assert under.losses() == alone.losses() and len(alone.losses()) == 40
    assert under.digest() == alone.digest()
    for run in (alone, under):
        planned = run.events("planned")[0]
        assert planned["stages"] == 2 and planned["microbatches"] == 4 and sum(planned["split"]) == 3
        speeds = json.loads((run.dir / "profile.json").read_text())["speeds"]
        assert all(len(costs["layers"]) == 3 for costs in (*speeds["alone"], *speeds["beside"]))
    assert under.gone()
    # What goes on takes the measurement that is kept with the run: another one might cut elsewhere.
    kept = (alone.dir / "profile.json").read_text()
    again = alone.run("train.epochs=null", "train.steps=44", *STEPS[2:], workers=2)
    assert "measuring the model" not in again.stdout and (alone.dir / "profile.json").read_text() == kept
    assert alone.events("planned")[1]["split"] == planned["split"] and alone.status()["step"] == 44


def test_a_split_that_does_not_fit_ends_the_job_with_one_message(tmp_path):
    """Nothing has to be measured for it, so the workers are the first to see the model: each of them refuses the
    split, and the user is told once, as of any mistake in the job file."""
    run = Run(tmp_path)
    done = run.run("train.epochs=null", "train.steps=4", "hybrid={stages: 2, split: [1, 99], microbatches: 4, devices: cpu}",
                   workers=2, code=2)
    said = done.stdout + done.stderr
    assert said.count("hybrid.split is [1, 99], 100 layers in 2 stages, but the model has 3 layers (1: ") == 1, said
    assert "'hybrid.split=[2,1]'" in said and "Traceback" not in said
    assert run.status()["exit_code"] == 2 and not run.events("worker_lost")
    started = "".join(path.read_text() for path in run.dir.glob("logs/*"))
    assert started.count("hvtrain.control.worker: worker w") <= 2  # nobody is started again
