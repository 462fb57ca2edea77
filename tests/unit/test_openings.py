"""What of a job's ``hybrid`` section is settled where nothing can be measured: by a script, and by hvtrain.Trainer."""

from __future__ import annotations

import pytest

from hvtrain import Job, Task, Trainer, trainer
from hvtrain.errors import UsageError
from hvtrain.hybrid import openings
from hvtrain.loop import Outcome


def job(hybrid, **sections):
    values = {"task": {"target": "t:T"}, "data": {"global_batch": 32}, "hybrid": hybrid, **sections}
    return Job.model_validate(values)


@pytest.mark.parametrize("hybrid, workers, stages, microbatches", [
    ({"split": [3, 4]}, 1, 2, 8), ({"split": [3, 4]}, 8, 2, 4), ({"split": [7]}, 1, 1, 1),
    ({"split": [3, 4], "microbatches": 5}, 1, 2, 5)])
def test_what_follows_from_the_split(hybrid, workers, stages, microbatches):
    found = openings.without_measuring(job(hybrid), workers).hybrid
    assert (found.stages, found.microbatches, found.split) == (stages, microbatches, hybrid["split"])


def test_a_job_without_stages_stays_as_it_is():
    plain = job(None)
    assert openings.without_measuring(plain, 4) is plain


class Idle:
    """Writes down the job instead of training it."""

    def __init__(self, job, task, session, **settings):
        Idle.job, self.step = job, 0

    def run(self):
        return Outcome(0, False)


class Nothing(Task):
    def model(self):
        raise AssertionError("it is refused before a model is built")

    data = loss = model


def train(hybrid, tmp_path):
    return Trainer(job(hybrid, run={"dir": str(tmp_path / "run")}), Nothing()).fit()


def test_a_trainer_settles_as_the_command_does(tmp_path, monkeypatch):
    """``hybrid.microbatches: auto`` is the default, and a job that left it so was refused by its worker only."""
    monkeypatch.setattr(trainer, "Loop", Idle)
    train({"split": [3, 4], "devices": "cpu"}, tmp_path)
    assert Idle.job.hybrid.stages == 2 and Idle.job.hybrid.microbatches == 8


@pytest.mark.parametrize("hybrid, said", [
    ({}, r"got auto, auto and None.*write the numbers down, for instance \{stages: 2, split"),
    ({"stages": 2}, "got 2, auto and None"), ({"stages": "auto", "microbatches": 4}, "got auto, 4 and None"),
    ({"split": [3, 4], "memory": "1GB"}, "hybrid.memory is 1GB.*leave hybrid.memory out")])
def test_a_trainer_refuses_what_takes_a_measurement(hybrid, said, tmp_path):
    """It built the model first, and then sent its user to `hvtrain run`, which knows the task of a job file only."""
    with pytest.raises(UsageError, match=f"(?s){said}.*hvtrain plan CONFIG"):
        train(hybrid, tmp_path)
    assert not (tmp_path / "run").exists()
