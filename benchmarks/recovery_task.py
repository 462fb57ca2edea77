"""hvtrain's side of recovery.py: a workload whose workers log every committed step. In Keras: keras_task.py."""

from __future__ import annotations

from typing import Any

import models
from pace import Pace

from hvtrain import ArraySource, Callback, Task


class Paced(Task):
    """One of ``models.WORKLOADS``."""

    def __init__(self, workload: str):
        self._workload = models.WORKLOADS[workload]

    def model(self) -> Any:
        return self._workload.model()

    def data(self, split: str) -> Any:
        return ArraySource(*self._workload.data()) if split == "train" else None

    def loss(self, outputs: Any, batch: Any) -> Any:
        return models.sample_losses(outputs, batch[1])

    def callbacks(self) -> list[Callback]:
        return [Pace()]
