"""What is true of lost workers is true of Keras models in stages: a replica is killed, and nothing shows in the end."""

from __future__ import annotations

import pytest

from tests.support.keras_runs import KerasRun
from tests.support.whole_job import WHOLE

pytest.importorskip("tensorflow")

STEPS = 30
JOB = (*(setting for setting in WHOLE if not setting.startswith("train.steps")), f"train.steps={STEPS}",
       "hybrid={stages: 2, split: [2, 3], microbatches: 3, devices: cpu}")


def test_replicas_killed_forward_and_backward(tmp_path, tmp_path_factory):
    """Two replicas of two stages; the first is killed while micro-batches go forward, the other one in backward."""
    calm = KerasRun(tmp_path_factory.mktemp("calm"))
    run = KerasRun(tmp_path)
    try:
        calm.run(*JOB, workers=2, seconds=120)
        run.run(*JOB, workers=2, seconds=120, faults=[
            {"kind": "kill", "phase": "forward", "rank": 0, "step": 10},
            {"kind": "kill", "phase": "backward", "rank": 1, "step": 20}])
        assert {strike.phase for strike in run.struck()} == {"forward", "backward"}
        assert len(run.events("worker_lost")) == 2 and not run.events("rollback")
        report = run.exact(STEPS)
        assert (report.sizes, report.repeated) == ((2,), 0)
        assert run.ending() == calm.ending() and run.gone()
    finally:
        calm.kill_all()
        run.kill_all()
