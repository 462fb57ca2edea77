"""Jobs that compute in half precision, and jobs that compress: what users see of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hvtrain.checkpoint import Store
from tests.support.runs import Run

STEPS = ("train.epochs=null", "train.steps=40", "task.args.norm=true")


def need_half() -> None:
    try:
        with torch.autocast("cpu", dtype=torch.float16):
            nn.Linear(2, 2)(torch.ones(1, 2)).sum().backward()
    except RuntimeError as error:
        pytest.skip(f"this build of PyTorch has no float16 on the CPU: {error}")


def trained(run: Run) -> list[dict]:
    return [record for record in run.records("metrics.jsonl") if record["kind"] == "train"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> dict[int, float]:
    """The losses of plain training on two workers."""
    run = Run(tmp_path_factory.mktemp("plain"))
    run.run(*STEPS, workers=2)
    return run.losses()


@pytest.mark.parametrize("setting", ["train.precision=bf16",
                                     *(pytest.param(setting, marks=pytest.mark.soak)
                                       for setting in ("train.precision=fp16", "comm.codec=int8"))])
def test_they_learn_what_plain_training_learns(setting, plain, tmp_path):
    if "fp16" in setting:
        need_half()
    run = Run(tmp_path)
    run.run(*STEPS, setting, "comm.shared_memory=false", workers=2)
    last, wanted = (sum(list(losses.values())[-8:]) / 8 for losses in (run.losses(), plain))
    assert wanted < 0.7 * plain[1] and 0 < abs(last - wanted) < 0.01 * plain[1]
    store = Store(run.dir / "checkpoints")
    snapshot = store.read(store.newest_sound())
    kept = {name: blob.dtype for name, blob in snapshot.groups["model"].items()}
    assert kept.pop("1.num_batches_tracked") == "I64" and set(kept.values()) == {"F32"}
    assert ("loss_scale" in snapshot.state["framework_state"]) == (setting == "train.precision=fp16")


def test_a_loss_that_is_never_finite_again_ends_the_job_with_sound_weights(tmp_path):
    """Half precision may overflow for a moment, so steps are left out for a while first."""
    need_half()
    run = Run(tmp_path)
    (tmp_path / "book").mkdir()
    fault = f"task.args={{fault: {{kind: nan, rank: 1, step: 9}}, ledger: {tmp_path / 'book'}}}"
    done = run.run("train.epochs=null", "train.steps=200", "train.precision=fp16", "train.loss_scale=16", fault,
                   workers=2, code=5)
    assert "however small the loss scale" in done.stderr and "train.precision=bf16" in done.stderr
    records = trained(run)
    assert [record["skipped"] for record in records] == [0.0] * 9 + [1.0] * 19  # from 16 to below 2^-14
    assert {record["loss"] for record in records[9:]} == {"nan"}
    store = Store(run.dir / "checkpoints")
    assert store.read(store.newest_sound()).step == 20


def test_a_model_in_half_precision_is_refused_with_a_remedy(tmp_path):
    run = Run(tmp_path)
    (tmp_path / "halved.py").write_text(
        "from tasks import Blobs\n\nclass Halved(Blobs):\n"
        "    def model(self):\n        return super().model().bfloat16()\n")
    done = run.run(*STEPS, "task.target=halved:Halved", "comm.codec=fp16", workers=2, code=2)
    assert "'0.weight' is bfloat16" in done.stderr and "comm.codec=none" in done.stderr, done.stderr
