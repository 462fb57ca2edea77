"""The workloads as hvtrain tasks. The rate is taken by a callback, not by hvtrain's own meter."""

from __future__ import annotations

import time
from typing import Any

import models
from timing import Timing

from hvtrain import ArraySource, Callback, Task


class Benchmark(Task):
    """One of ``models.WORKLOADS``; ``steps`` must be ``train.steps``, ``sleep`` (seconds) makes each of them longer."""

    def __init__(self, workload: str, steps: int, sleep: float = 0.0):
        self._workload, self._steps, self._sleep = models.WORKLOADS[workload], steps, sleep

    def model(self) -> Any:
        return self._workload.model()

    def data(self, split: str) -> Any:
        return ArraySource(*self._workload.data()) if split == "train" else None

    def loss(self, outputs: Any, batch: Any) -> Any:
        if self._sleep:
            time.sleep(self._sleep)
        return models.sample_losses(outputs, batch[1])

    def callbacks(self) -> list[Callback]:
        return [Timing(self._steps, _barrier)]


def _barrier() -> None:
    import horovod.torch as hvd

    hvd.barrier()
