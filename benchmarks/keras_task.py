"""The Keras workloads as hvtrain tasks: for throughput.py and for recovery.py."""

from __future__ import annotations

from typing import Any

import keras_models
from pace import Pace
from timing import Timing

from hvtrain import ArraySource, Callback, Task


class Workload(Task):
    """One of ``keras_models.WORKLOADS``."""

    def __init__(self, workload: str):
        self._workload = keras_models.WORKLOADS[workload]

    def model(self) -> Any:
        return self._workload.model()

    def data(self, split: str) -> Any:
        return ArraySource(*self._workload.data()) if split == "train" else None

    def loss(self, outputs: Any, batch: Any) -> Any:
        return keras_models.sample_losses(outputs, batch[1])


class Benchmark(Workload):
    """``steps`` must be ``train.steps``. The rate is taken by a callback, not by hvtrain's own meter."""

    def __init__(self, workload: str, steps: int):
        super().__init__(workload)
        self._steps = steps

    def callbacks(self) -> list[Callback]:
        return [Timing(self._steps, barrier)]


class Paced(Workload):
    """Its workers log every committed step."""

    def callbacks(self) -> list[Callback]:
        return [Pace()]


def barrier() -> None:
    """Wait until all ranks are here."""
    import horovod.tensorflow as hvd
    import tensorflow as tf

    hvd.allreduce(tf.zeros(1), op=hvd.Sum, name="benchmark.barrier")
