"""A run that is started again where there are fewer cores computes with as many threads as before, and says so."""

from __future__ import annotations

import json
import signal

import pytest

from hvtrain.engine.machine import cores
from tests.support.runs import Run

LONG = ("train.epochs=null", "train.steps=100000", "task.args.slow=0.01")


def stopped(run: Run, after: int) -> str:
    """The job trains for some steps and is told to stop; what it has said."""
    run.until_step(after, 90)
    run.process.send_signal(signal.SIGTERM)
    assert run.wait().returncode == 143, run.logs()
    return run._output("out").read_text()


@pytest.mark.skipif(cores() < 2, reason="a machine with two cores is needed")
def test_a_run_that_goes_on_where_there_are_fewer_cores_keeps_its_threads(run):
    run.start(*LONG, workers=1)
    assert "threads each" not in stopped(run, 5)
    kept = json.loads((run.dir / "sums.json").read_text())
    assert kept == {"workers": 1, "threads": cores(), "tree": {"1": True}}
    run.start(*LONG, workers=1, prefix=("taskset", "-c", "0"))
    said = stopped(run, run.last_step() + 5)
    assert f"has 1 core for each worker, but this run computes with {cores()} threads each" in said
    assert run.events("resumed") and json.loads((run.dir / "sums.json").read_text()) == kept
    run.start(*LONG, "launch.threads=1", workers=1)
    assert "threads each" not in stopped(run, run.last_step() + 5)
    assert json.loads((run.dir / "sums.json").read_text())["threads"] == 1, "a person has chosen"
