"""Between the training and the checkpoint store: what a worker that was given up, or whose disk hangs, does."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import numpy as np
import pytest

from hvtrain import saving
from hvtrain.checkpoint import Blob
from hvtrain.checkpoint.fence import Fence
from hvtrain.config import Job
from hvtrain.errors import GivenUp
from hvtrain.progress import Progress
from hvtrain.saving import Saver
from hvtrain.session import QuietSession

JOB = "01795300215248608065-89fbfe6d"


class Session(QuietSession):
    job_id, round, rank, first = JOB, 5, 0, True

    def event(self, name, step, **values):
        pass


class Adapter:
    """Three numbers, of which copies are kept."""

    def finite(self):
        return True

    def scalars(self):
        return {}

    def export(self, copy=True):
        return {"model": {"w": Blob.from_numpy(np.zeros(3, np.float32))}}


@pytest.fixture
def saver(tmp_path):
    job = Job.model_validate({"version": 1, "framework": "numpy", "run": {"dir": str(tmp_path)}, "task": {"target": "a:b"},
                              "data": {"global_batch": 4}, "train": {"steps": 4}, "optim": {"name": "sgd", "lr": 0.1},
                              "checkpoint": {"every": "1 step"}})
    saver = Saver(job, Adapter(), (), Session())
    yield saver
    saver.close()


def test_a_worker_that_was_given_up_does_not_end_as_if_its_last_step_were_saved(saver, tmp_path):
    """It used to: the refusal stood in the log alone, the job's account said "saved by a survivor", and the step counted as
    saved if the worker came to be rank 0 of a later round at the same step."""
    saver.enter_round()
    saver.save(Progress(step=3), 1, wait=True)
    Fence(tmp_path / "checkpoints").raise_to(JOB, 6, first=False)
    with pytest.raises(GivenUp):
        saver.save(Progress(step=4), 1, wait=True)
    assert saver.newest_step() == 3
    saver._session.round = 6
    saver.catch_up(Progress(step=4), SimpleNamespace(rank=0, size=1))
    saver.settle()
    assert saver.newest_step() == 4


def test_a_disk_that_hangs_keeps_no_round_from_being_formed(saver, tmp_path, monkeypatch, caplog):
    """It is fenced before the next checkpoint instead."""
    go_on, real = threading.Event(), Fence.raise_to
    monkeypatch.setattr(saving, "LOCK_SECONDS", 0.05)

    def hang(*_, **more):
        go_on.wait(10)
        raise OSError("stale file handle")

    monkeypatch.setattr(Fence, "raise_to", hang)
    saver.enter_round()
    assert "no answer from the disk" in caplog.text
    monkeypatch.setattr(Fence, "raise_to", real)
    go_on.set()
    saver.save(Progress(step=3), 1, wait=True)
    assert f"{JOB} {5:012d}" in (tmp_path / "checkpoints" / ".fence").read_text()
