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
        assert len(json.loads((run.dir / "profile.json").read_text())["costs"]["layers"]) == 3
    assert under.gone()
    # What goes on takes the measurement that is kept with the run: another one might cut elsewhere.
    kept = (alone.dir / "profile.json").read_text()
    again = alone.run("train.epochs=null", "train.steps=44", *STEPS[2:], workers=2)
    assert "measuring the model" not in again.stdout and (alone.dir / "profile.json").read_text() == kept
    assert alone.events("planned")[1]["split"] == planned["split"] and alone.status()["step"] == 44
