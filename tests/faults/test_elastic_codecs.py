"""Workers are killed while gradients travel compressed, or are computed in half precision: not a bit is different."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from torch import nn

from tests.support.whole_job import STEPS, WHOLE


APART = ("comm.shared_memory=false", "comm.bucket_mb=0.008", "comm.first_bucket_mb=0.004", "task.args.width=256")
"""As if every worker had a host of its own; gradients fill several buckets, of which each worker adds up a part."""

SETTINGS = {
    "none": APART,
    "fp16": (*APART, "comm.codec=fp16"),
    "bf16": (*APART, "comm.codec=bf16"),
    "int8": (*APART, "comm.codec=int8"),
    "feedback": (*APART, "task.args.feedback=true"),
    "bf16 precision": (*APART, "comm.codec=int8", "train.precision=bf16"),
    "fp16 precision": (*APART, "comm.codec=fp16", "train.precision=fp16", "train.loss_scale=1099511627776",
                       "task.args.huge=7"),  # 2^40: the first steps overflow, and one in every epoch
}
SHORT = ("int8",)  # the rest takes the same way through the code: in soaks
ways = pytest.mark.parametrize("way", [way if way in SHORT else pytest.param(way, marks=pytest.mark.soak)
                                       for way in SETTINGS])


def kill(phase: str, rank: int | list[int], step: int) -> dict:
    return {"kind": "kill", "phase": phase, "rank": rank, "step": step}


def supported(way: str) -> tuple[str, ...]:
    """The settings; skips what this build of PyTorch cannot do."""
    if way == "fp16 precision":
        try:
            with torch.autocast("cpu", dtype=torch.float16):
                nn.Linear(2, 2)(torch.ones(1, 2)).sum().backward()
        except RuntimeError as error:
            pytest.skip(f"this build of PyTorch has no float16 on the CPU: {error}")
    return SETTINGS[way]


@ways
def test_killed_while_gradients_travel_and_are_applied(run, calm, way):
    settings = supported(way)
    run.run(*WHOLE, *settings, workers=3, faults=[
        kill("bucket", 1, step=4), kill("reduced", 0, step=12), kill("optimizer", 2, step=61),
        kill("bucket", [0, 2], step=70), kill("reduced", [1, 2], step=85), kill("committed", 0, step=100)])
    assert len(run.struck()) == len(run.events("worker_lost")) == 8
    assert not run.events("rollback")
    report = run.exact(STEPS)
    assert (report.sizes, report.repeated) == ((3,), 0)
    ending = run.ending()
    assert ending == calm(3, *settings) and run.gone()
    assert ("codec" in ending) == (way == "feedback")
    assert (ending["model"] == calm(3, *APART)["model"]) == (way == "none"), "it must make a difference"
    if way == "fp16 precision":
        steps = {record["step"]: record for record in run.records("metrics.jsonl") if record["kind"] == "train"}
        skipped = {step for step, record in steps.items() if record["skipped"]}
        assert {4, 11, 13} <= skipped and len(skipped) > 30
        for step in steps.keys() & {step + 1 for step in steps}:  # all but those that died with rank 0
            former = steps[step - 1]
            assert steps[step]["loss_scale"] == former["loss_scale"] / (2 if former["skipped"] else 1)


@pytest.mark.soak
@pytest.mark.parametrize("way", ["int8", "feedback", "fp16 precision"])
def test_killed_all_at_once_and_resumed(run, calm, way):
    """The state of codecs and of the loss scale is in snapshots and in checkpoints."""
    settings = (*WHOLE, *supported(way), "checkpoint.every=10 steps", "elastic.snapshot_every=7 steps")
    run.start(*settings, "task.args.slow=0.05", workers=3, faults=[kill("backward", [0, 1, 2], step=10)])
    run.until_step(34)
    for pid in run.pids():
        os.kill(pid, signal.SIGKILL)
    assert run.wait().returncode == -signal.SIGKILL
    assert [event["source"] for event in run.events("rollback")] == ["memory"]
    run.run(*settings, workers=3)
    assert run.events("resumed")[0]["step"] >= 30
    assert run.ending() == calm(3, *SETTINGS[way]) and run.gone()
