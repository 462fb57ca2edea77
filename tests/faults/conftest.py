"""Runs for fault tests, and what they would have ended with if they had been left alone."""

from __future__ import annotations

import pytest

from tests.support.hosts import Hosts
from tests.support.requirements import need_hosts
from tests.support.runs import Run
from tests.support.whole_job import STEPS, WHOLE


@pytest.fixture
def run(tmp_path):
    """A job that has not been started; nothing of it outlives the test."""
    job = Run(tmp_path)
    (tmp_path / "ledger").mkdir()
    yield job
    job.kill_all()


@pytest.fixture(scope="module")
def four():
    """Four hosts on one network."""
    need_hosts()
    with Hosts(4) as made:
        yield made


@pytest.fixture
def net(four):
    """Four hosts. What a test does to their network is undone after it."""
    yield four
    four.mend()


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
