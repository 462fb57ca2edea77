"""Replicas whose model is in stages lose nothing either: killed within a stage's thread or beside it, not a bit differs."""

from __future__ import annotations

import pytest

from test_elastic_phases import kill
from tests.support.runs import Run
from tests.support.whole_job import WHOLE

STEPS = 64
SETTINGS = (*WHOLE, f"train.steps={STEPS}", "hybrid={stages: 2, microbatches: 4, split: [2, 2], devices: cpu}")


@pytest.fixture
def undisturbed(tmp_path_factory):
    """``undisturbed(workers)``: what a run that is left alone ends with."""
    def ending(workers: int) -> dict:
        job = Run(tmp_path_factory.mktemp("undisturbed"))
        try:
            job.run(*SETTINGS, workers=workers)
            return job.ending()
        finally:
            job.kill_all()

    return ending


def test_killed_in_every_phase_of_a_step(run, undisturbed):
    """Two replicas of two stages. One failure is an exception in a stage's thread, which is told with its own traceback."""
    run.run(*SETTINGS, workers=2, faults=[
        kill("forward", 1, step=8), kill("backward", 0, step=17), kill("bucket", 1, step=26),
        kill("optimizer", 0, step=35), {"kind": "raise", "phase": "forward", "rank": 1, "step": 44},
        {"kind": "cut", "phase": "backward", "rank": 0, "step": 53}])
    assert [strike.phase for strike in run.struck()] == ["forward", "backward", "bucket", "optimizer", "forward", "backward"]
    assert len(run.events("worker_lost")) == 5 and not run.events("rollback")
    assert "stage.py" in (run.dir / "logs" / "rank-1.log").read_text(), "the traceback leads into the stage"
    report = run.exact(STEPS)
    assert (report.sizes, report.repeated) == ((2,), 0)
    assert run.ending() == undisturbed(2) and run.gone()


def test_the_only_replica_goes_on_from_the_hosts_memory(run, undisturbed):
    run.run(*SETTINGS, "elastic.snapshot_every=7 steps", workers=1, faults=[kill("backward", 0, step=40)])
    rollback, = run.events("rollback")
    assert (rollback["source"], rollback["step"]) == ("memory", 35)
    assert run.exact(STEPS).repeated == 4
    assert run.ending() == undisturbed(1) and run.gone()
