"""Having a model measured: what one thread alone takes is found first, and is not lost with what comes after it."""

from __future__ import annotations

from hvtrain.config import Job
from hvtrain.errors import EnvironmentNotReady
from hvtrain.hybrid.costs import LayerCost, ModelCosts
from hvtrain.hybrid.measurement import Measurement
from hvtrain.hybrid.speeds import Speeds
from hvtrain.launch import measurer

JOB = Job.model_validate({"task": {"target": "m:t"}, "data": {"global_batch": 4}, "train": {"epochs": 1},
                          "optim": {"name": "sgd", "lr": 1.0}})


def test_processes_that_run_out_of_memory_at_once_do_not_cost_the_measurement(monkeypatch, tmp_path) -> None:
    """One process loaded the data set and was well; of four the kernel killed one, and the plan failed."""
    alone = Measurement(Speeds((ModelCosts((LayerCost("a", 1.0, 2.0, 4, 4, 4),), batch=2, device="cpu"),)))
    asked = []

    def measure(requests):
        asked.append(len(requests))
        if len(asked) == 1:
            return [alone]
        raise EnvironmentNotReady("the process that measures the model ended without an answer (status -9).")

    monkeypatch.setattr(measurer.trials, "measure", measure)
    job = JOB.model_copy(update={"run": JOB.run.model_copy(update={"dir": str(tmp_path)})})
    found = measurer.obtain(job, "/code", workers=1, threads=2, fresh=True)
    assert len(asked) == 2 and found.speeds == alone.speeds and found.key
