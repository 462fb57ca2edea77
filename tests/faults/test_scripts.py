"""Ordinary scripts under ``hvtrain run script.py``: workers are killed, and the result is as if they had not been."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.support.runs import ROOT, Run, environment

SCRIPTS = ROOT / "examples" / "scripts"
KEPT = ("train.epochs=4", "log.ledger=true", "log.every=1", "log.console=plain", "elastic.replace_timeout=60s")


def start(run: Run, script, *arguments: str, workers: int = 2, faults=()) -> Run:
    options = ["--chaos", str(run.write_plan(faults))] if faults else []
    return run.launch([sys.executable, "-m", "hvtrain.cli.main", "run", str(script), "-np", str(workers),
                       f"run.dir={run.dir}", *arguments, *options])


def finish(run: Run, code: int = 0):
    done = run.wait(170)
    assert done.returncode == code, f"exit {done.returncode}\n{run.logs()}"
    assert run.gone(), run.pids()
    return done


def logs(run: Run) -> str:
    return "".join(path.read_text() for path in sorted(run.dir.glob("logs/*.log")))


@pytest.mark.parametrize("name", [pytest.param("torch_fit", marks=pytest.mark.soak), "keras_fit"])
def test_an_example_script_whose_workers_are_killed(tmp_path, name):
    """Rank 1 in the middle of a step, rank 0 in an evaluation, where Keras's callbacks decide: same weights, samples."""
    for part in ("calm", "struck"):
        (tmp_path / part).mkdir()
    calm, run = Run(tmp_path / "calm"), Run(tmp_path / "struck")
    finish(start(calm, SCRIPTS / f"{name}.py", *KEPT))
    finish(start(run, SCRIPTS / f"{name}.py", *KEPT, faults=[
        {"kind": "kill", "phase": "backward", "step": 30, "rank": 1},
        {"kind": "kill", "phase": "evaluation", "step": 66, "rank": 0}]))
    assert len(run.struck()) == len(run.events("worker_lost")) == 2
    steps = run.status()["step"]
    assert steps == calm.status()["step"]
    run.exact(steps)
    ending, expected = run.ending(), calm.ending()
    assert ending == expected
    said = [[line for line in logs(job).splitlines() if line.startswith(("accuracy", "after"))] for job in (calm, run)]
    assert len(said[0]) == 2 and set(said[0]) == set(said[1]), said
    if name == "keras_fit":
        assert ending["callbacks"]["keras"]["now"]["callbacks"][-1]["values"]["epoch"] == list(range(steps // 22))


SCRIPT = """\
import os, time
import torch
from torch import nn
import hvtrain, hvtrain.torch

torch.manual_seed(1)
points = torch.randn(60, 4)
data = torch.utils.data.TensorDataset(points, (points[:, 0] > 0).long())
model = nn.Linear(4, 2)

def fit():
    return hvtrain.torch.fit(model, {"log": {"every": 1}}, data, loss=nn.CrossEntropyLoss(), batch_size=20, epochs=2,
                             optimizer=torch.optim.SGD(model.parameters(), lr=0.1))

print("outcome", fit().step, flush=True)
if "raise" in os.environ.get("WANTED", "") and hvtrain.is_first():
    raise FileNotFoundError("results/")
if "long" in os.environ.get("WANTED", ""):
    time.sleep(6)
    print("still here", flush=True)
"""


def test_an_exception_after_the_training_is_how_the_job_ends(tmp_path):
    run = Run(tmp_path)
    (tmp_path / "train.py").write_text(SCRIPT)
    run.launch([sys.executable, "-m", "hvtrain.cli.main", "run", "train.py", "-np", "2", f"run.dir={run.dir}"],
               WANTED="raise")
    done = finish(run, code=1)
    assert "FileNotFoundError: results/" in done.stderr and run.status()["state"] == "failed"


def test_the_rest_of_a_script_may_take_longer_than_any_timeout(tmp_path):
    """And what the command says goes before what the script says: one epoch of three steps, not two."""
    run = Run(tmp_path)
    (tmp_path / "train.py").write_text(SCRIPT)
    run.launch([sys.executable, "-m", "hvtrain.cli.main", "run", "train.py", "-np", "2", f"run.dir={run.dir}",
                "train.epochs=1", "launch.stop_timeout=1s", "elastic.heartbeat_timeout=2s"], WANTED="long")
    finish(run)
    assert logs(run).count("still here") == logs(run).count("outcome 3") == 2
    assert run.status()["state"] == "done"


def test_a_plain_script_trains_alone_and_goes_on_after_an_interruption(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)

    def python(**env):
        done = subprocess.run([sys.executable, "train.py"], cwd=tmp_path, capture_output=True, text=True, timeout=90,
                              env=environment(**env))
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "outcome 3" in python(HVTRAIN_TRAIN__EPOCHS="1")
    assert "outcome 6" in python()
    events = [json.loads(line) for line in (tmp_path / "runs" / "train" / "events.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["event"] == "resumed"] == [3]
    assert os.listdir(tmp_path / "runs") == ["train"]
