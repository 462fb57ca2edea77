"""The number of workers changes while the job runs: late replacements, growth and shrinkage on request, spares."""

from __future__ import annotations

import os
import signal

import pytest

from tests.support.runs import Run, hvtrain
from tests.support.whole_job import STEPS

PLAIN = ("train.epochs=null", f"train.steps={STEPS}", "data.global_batch=33", "log.ledger=true",
         "optim.schedule={name: cosine, warmup: 10%}")
"""Without normalisation over batches, so that the mathematics do not depend on how many share a batch."""


@pytest.fixture(scope="module")
def losses(tmp_path_factory):
    """What one worker, left alone, measures at each step."""
    alone = Run(tmp_path_factory.mktemp("plain"))
    alone.run(*PLAIN, workers=1)
    return alone.losses()


def sizes(run: Run) -> list[tuple[int, int]]:
    return [(event["old"], event["new"]) for event in run.events("resize")]


def test_a_late_replacement_is_not_waited_for_and_joins_later(run, losses):
    run.run(*PLAIN, "elastic.replace_timeout=0s", "task.args.slow=0.02", f"task.args.ledger={run.base / 'ledger'}",
            "task.args.late={after: 3, seconds: 1.5}", workers=3,
            faults=[{"kind": "kill", "step": 20, "phase": "bucket", "rank": 1}])
    run.struck()
    assert sizes(run) == [(3, 2), (2, 3)]
    report = run.exact(STEPS)
    assert (report.sizes, report.repeated) == ((2, 3), 0)
    assert run.losses() == pytest.approx(losses, abs=1e-5) and run.gone()


def test_scaled_up_and_down(run, losses):
    """Each change costs one round, however many come or go, and the mathematics stay the same."""
    run.start(*PLAIN, "task.args.slow=0.03", workers=2)
    run.until_step(5)
    told = hvtrain("scale", str(run.dir), "4").stdout
    assert told == "from 2 to 4 workers\n"
    run.until(lambda: sizes(run) == [(2, 4)], "growth")
    run.scale(1)
    run.until(lambda: len(sizes(run)) == 2, "shrinkage")
    assert run.wait().returncode == 0
    assert sizes(run) == [(2, 4), (4, 1)] and len(run.events("round")) == 3
    report = run.exact(STEPS)
    assert (report.sizes, report.repeated, report.retried) == ((1, 2, 4), 0, 0)
    assert not run.events("worker_lost")
    assert run.losses() == pytest.approx(losses, abs=1e-5) and run.gone()


def test_the_batch_may_follow_the_workers_and_the_learning_rate_the_batch(run):
    """Whatever the batch is, every epoch uses every sample once."""
    run.start("train.epochs=8", "elastic.on_resize=keep_local_batch", "log.ledger=true", "task.args.slow=0.02",
              "data.global_batch=24", workers=2)
    run.until_step(5)
    run.scale(4)
    run.until(lambda: sizes(run) == [(2, 4)], "growth")
    run.until_step(run.last_step() + 5)
    run.scale(1)
    assert run.wait().returncode == 0
    assert sizes(run) == [(2, 4), (4, 1)]
    trained = [record for record in run.records("metrics.jsonl") if record["kind"] == "train"]
    assert {(record["world_size"], round(record["lr"], 6)) for record in trained} == {(2, 3e-3), (4, 6e-3), (1, 1.5e-3)}
    report = run.exact(trained[-1]["step"])
    assert (report.epochs, report.samples, report.sizes) == (8, 8 * 230, (1, 2, 4))
    assert run.gone()


def test_a_spare_takes_the_place_of_the_lost(run):
    """It has built its model long ago, so the job waits for no start; and then there is a new spare."""
    run.start("train.epochs=null", "train.steps=60", "task.args.slow=0.05", "elastic.spares=1", "log.ledger=true", workers=2)
    lost = []
    for rounds in (2, 3):
        ranked, spare = run.until(lambda: standing(run, without=lost), "two workers and a spare")
        lost.append(ranked[1]["worker"])
        os.kill(ranked[1]["pid"], signal.SIGKILL)
        run.until(lambda: len(run.events("round")) == rounds, "the next round")
        now, _ = run.until(lambda: standing(run, without=lost), "a new spare")
        assert [worker["worker"] for worker in now] == [ranked[0]["worker"], spare]
    assert run.wait().returncode == 0
    assert [event["worker"] for event in run.events("worker_lost")] == lost
    report = run.exact(60)
    assert (report.sizes, report.repeated) == ((2,), 0)
    used = [path.name for path in (run.dir / "ledger").iterdir() if '"used"' in path.read_text()]
    assert len(used) == 4, "two at first, two spares; the last spare has never trained"
    assert run.gone()


def standing(run: Run, without: list[str]) -> tuple[list[dict], str] | None:
    """The two workers in the order of their ranks, and the name of the spare, once there are."""
    if run.last_step() < 1:
        return None
    workers = [worker for worker in run.workers().values() if worker["worker"] not in without]
    ranked = sorted((worker for worker in workers if worker["state"] == "training"), key=lambda worker: worker["rank"])
    spares = [worker["worker"] for worker in workers if worker["state"] == "standing by"]
    return (ranked, spares[0]) if len(ranked) == 2 and len(spares) == 1 else None
