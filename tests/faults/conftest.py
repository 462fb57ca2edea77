"""Runs for fault tests, and what they would have ended with if they had been left alone."""

from __future__ import annotations

import pytest

from tests.support.runs import Run

STEPS = 120
WHOLE = ("train.epochs=null", f"train.steps={STEPS}", "eval.every=20 steps", "task.args.norm=true", "train.ema=0.9",
         "optim.schedule={name: cosine, warmup: 10%}", "data.global_batch=33", "log.ledger=true",
         "elastic.replace_timeout=60s")
"""Everything that has a state: statistics of normalisation, averages, schedule, callbacks. No replacement is late, however
slow the machine: with fewer workers the sums would be rounded differently."""


@pytest.fixture
def run(tmp_path):
    """A job that has not been started; nothing of it outlives the test."""
    job = Run(tmp_path)
    (tmp_path / "ledger").mkdir()
    yield job
    job.kill_all()


@pytest.fixture(scope="session")
def calm(tmp_path_factory):
    """What an undisturbed run of ``WHOLE`` and further settings on so many workers ends with; each is made once."""
    endings = {}

    def ending(workers: int, *settings: str) -> dict:
        if (workers, *settings) not in endings:
            job = Run(tmp_path_factory.mktemp("calm"))
            job.run(*WHOLE, *settings, workers=workers)
            assert job.exact(STEPS).repeated == 0
            endings[workers, *settings] = job.ending()
        return endings[workers, *settings]

    return ending
