"""Every example trains a few steps through the real command line, and the script among them by itself."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("horovod")
pytestmark = pytest.mark.timeout(120)

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
CLI = (sys.executable, "-m", "hvtrain.cli.main")
SHORT = ("train.epochs=null", "train.steps=3", "log.every=1", "data.global_batch=8", "data.eval_batch=256",
         "checkpoint.every=2 steps", "eval.every=2 steps")
TINY = {  # what makes three steps and two evaluations cheap
    "charlm": ("task.args.context=16", "task.args.width=32", "task.args.heads=2", "task.args.layers=1",
               "task.args.write=8"),
    "charlm_keras": ("task.args.context=16", "task.args.width=32", "task.args.heads=2", "task.args.layers=1",
                     "task.args.write=8"),
    "custom": ("task.args.width=4",),
    "digits": (),
    "hybrid": ("task.args.context=16", "task.args.width=32", "task.args.heads=2", "task.args.layers=2", "hybrid.memory=null",
               "hybrid.split=[3,3]"),
    "finetune": ("task.args.width=4", "task.args.train_fraction=0.5"),
    "mnist": ("data.micro_batch=3", "task.args.width=4"),
    "mnist_keras": ("data.micro_batch=3", "task.args.width=4"),
}


def environment():
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HVTRAIN_", "HOROVOD_"))
                 or name == "HVTRAIN_CACHE"}
    return {**inherited, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def call(folder, *command, expect=0):
    done = subprocess.run([*map(str, command)], cwd=folder, env=environment(), timeout=60, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    assert done.returncode == expect, f"{' '.join(map(str, command))}\nexit code {done.returncode}\n{done.stdout}"
    return done.stdout


def train(folder, example, *overrides, workers=1, expect=0):
    return call(folder, *CLI, "run", EXAMPLES / example / "config.yaml", f"run.dir={folder / example}", *SHORT,
                *TINY[example], *overrides, "-np", workers, expect=expect)


def check(run, steps=3):
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["exit_code"], status["step"]) == ("done", 0, steps)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, steps + 1))
    assert [line for line in lines if line["kind"] == "eval"]
    assert all(isinstance(line["loss"], float) and math.isfinite(line["loss"]) for line in lines), lines
    return lines


def losses(run):
    return [line["loss"] for line in check(run) if line["kind"] == "train"]


def test_there_is_a_test_for_every_example():
    assert {path.parent.name for path in EXAMPLES.glob("*/config.yaml")} == set(TINY)


@pytest.mark.parametrize("example", ["hybrid", "mnist_keras", *(
    pytest.param(name, marks=pytest.mark.soak) for name in ("charlm", "charlm_keras", "digits"))])
def test_example_trains_on_two_workers(example, tmp_path):
    if example.endswith("_keras"):
        pytest.importorskip("keras")
    train(tmp_path, example, workers=2)
    check(tmp_path / example)


def test_finetune_starts_from_exported_weights_of_mnist(tmp_path):
    from safetensors.torch import load_file

    told = train(tmp_path, "finetune", expect=2)
    assert "hvtrain run examples/mnist/config.yaml" in told and "hvtrain ckpt export" in told
    train(tmp_path, "mnist", workers=2)
    check(tmp_path / "mnist")
    (tmp_path / "runs").mkdir()
    call(tmp_path, *CLI, "ckpt", "export", tmp_path / "mnist", "--step", "best", "--to", "runs/mnist.safetensors")
    train(tmp_path, "finetune", workers=2)
    check(tmp_path / "finetune")
    call(tmp_path, *CLI, "ckpt", "export", tmp_path / "finetune", "--to", "tuned.safetensors")
    before, after = load_file(tmp_path / "runs/mnist.safetensors"), load_file(tmp_path / "tuned.safetensors")
    same = {name: bool((before[name] == after[f"backbone.{name}"]).all()) for name in before if not name.startswith("9.")}
    assert same == {"0.weight": True, "0.bias": True, "3.weight": True, "3.bias": True,  # frozen
                    "7.weight": False, "7.bias": False}


def test_custom_resumed_by_the_command_equals_the_script(tmp_path):
    """Two workers for two steps, one worker for the third; then all three in one go by train.py."""
    same = ("optim.schedule.name=constant", "task.args.goal=0")  # every evaluation is good; the second one stops
    train(tmp_path, "custom", *same, "train.steps=2", workers=2)
    check(tmp_path / "custom", steps=2)
    train(tmp_path, "custom", *same)
    log = (tmp_path / "custom/logs/rank-0.log").read_text()
    assert "starts at step 2; good evaluations so far: 1" in log  # the callback has its count again
    said = call(tmp_path, sys.executable, EXAMPLES / "custom" / "train.py", f"run.dir={tmp_path / 'script'}", *SHORT,
                *TINY["custom"], *same, "launch.threads=1")
    assert "3 steps" in said
    assert losses(tmp_path / "script") == pytest.approx(losses(tmp_path / "custom"), rel=1e-5)
