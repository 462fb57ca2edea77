"""What hosts.py trains: a workload of models.py and nothing else."""

from __future__ import annotations

from typing import Any

import models

from hvtrain import ArraySource, Task


class Workload(Task):
    """One of ``models.WORKLOADS``."""

    def __init__(self, workload: str):
        self._workload = models.WORKLOADS[workload]

    def model(self) -> Any:
        return self._workload.model()

    def data(self, split: str) -> Any:
        return ArraySource(*self._workload.data()) if split == "train" else None

    def loss(self, outputs: Any, batch: Any) -> Any:
        return models.sample_losses(outputs, batch[1])
