"""Real runs of a model in stages: what is saved does not depend on their number, and a timeline shows each of them."""

from __future__ import annotations

import json

import pytest

from tests.support import traces
from tests.support.runs import Run


@pytest.fixture
def run(tmp_path):
    job = Run(tmp_path)
    yield job
    job.kill_all()


def stages(*split: int) -> str:
    return f"hybrid={{stages: {len(split)}, microbatches: 4, split: {list(split)}, devices: cpu}}"


SETTINGS = ("train.epochs=null", "task.args.norm=true", "train.ema=0.9", "train.grad_clip=1.0", "data.global_batch=46",
            "launch.threads=1")
"""One thread for each operation, whatever the number of stages: with more, sums within an operation are rounded otherwise."""

EVALUATED = ("evaluated", "best_step")
"""Depends on where a run has stopped."""


def test_saved_with_two_stages_and_resumed_with_one_and_three(run, tmp_path):
    """To the bit like a run that has three from beginning to end. Its timeline has a row for each stage."""
    for steps, split in ((8, (2, 2)), (16, (4,)), (24, (1, 2, 1))):
        run.run(*SETTINGS, f"train.steps={steps}", stages(*split), workers=1)
    assert [event["step"] for event in run.events("resumed")] == [8, 16]
    whole = Run(tmp_path, "whole")
    try:
        whole.run(*SETTINGS, "train.steps=24", "log.timeline=5-6", stages(1, 2, 1), workers=1)
    finally:
        whole.kill_all()
    found, expected = run.ending(), whole.ending()
    assert found.keys() >= {"model", "optimizer", "ema"}
    assert {key: found[key] for key in found if key not in EVALUATED} == {
        key: expected[key] for key in expected if key not in EVALUATED}
    rows = traces.checked(json.loads((whole.dir / "timeline.json").read_text()))
    for rank in rows.values():
        assert [row for row in rank if row.startswith("stage")] == ["stage 0", "stage 1", "stage 2"]
        for number in range(3):
            assert [one.name for one in rank[f"stage {number}"]].count("backward") == 8  # 2 steps of 4 micro-batches
