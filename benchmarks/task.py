"""The workloads as hvtrain tasks: for throughput.py, recovery.py and hosts.py. In Keras: keras_task.py."""

from __future__ import annotations

import time
from typing import Any

import models
from pace import Pace
from timing import Timing

from hvtrain import ArraySource, Callback, Task


class Workload(Task):
    """One of ``models.WORKLOADS``, and nothing else."""

    def __init__(self, workload: str):
        self._workload = models.WORKLOADS[workload]

    def model(self) -> Any:
        return self._workload.model()

    def data(self, split: str) -> Any:
        return ArraySource(*self._workload.data()) if split == "train" else None

    def loss(self, outputs: Any, batch: Any) -> Any:
        return models.sample_losses(outputs, batch[1])


class Benchmark(Workload):
    """``steps`` must be ``train.steps``, ``sleep`` (seconds) makes each of them longer. The rate is taken by a callback, not
    by hvtrain's own meter."""

    def __init__(self, workload: str, steps: int, sleep: float = 0.0):
        super().__init__(workload)
        self._steps, self._sleep = steps, sleep

    def loss(self, outputs: Any, batch: Any) -> Any:
        if self._sleep:
            time.sleep(self._sleep)
        return super().loss(outputs, batch)

    def callbacks(self) -> list[Callback]:
        return [Timing(self._steps, _barrier)]


class Paced(Workload):
    """Its workers log every committed step."""

    def callbacks(self) -> list[Callback]:
        return [Pace()]


def _barrier() -> None:
    import horovod.torch as hvd

    hvd.barrier()
