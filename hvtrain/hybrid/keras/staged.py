"""A model whose layers lie in stages on several devices of this worker."""

from __future__ import annotations

from typing import Any, Sequence

import keras

from hvtrain.adapters.keras.steps import Steps
from hvtrain.config import Job
from hvtrain.errors import Uncuttable
from hvtrain.hybrid.keras import devices
from hvtrain.hybrid.keras.links import Chain, chain, whole
from hvtrain.hybrid.keras.stages import cut, owners, place, settled
from hvtrain.hybrid.keras.steps import StagedSteps
from hvtrain.task import Task


def _chain(model: keras.Model, task: Task, batch: Any, split: list[int]) -> tuple[Chain, list[int]]:
    """The model's links, and how many go to each stage. For one stage no model has to be cut."""
    try:
        return chain(model, task, batch), split
    except Uncuttable:
        if len(split) > 1:
            raise
        return whole(model, task), [1]


class Staged:
    """Fulfils :class:`hvtrain.adapters.keras.whole.Layout`. Raises UsageError for stages that are not settled."""

    needs_example = True

    def __init__(self, job: Job, threads: int, local_rank: int):
        assert job.hybrid is not None
        self._hybrid = job.hybrid
        self._split = settled(job)
        self._devices = devices.take(job.hybrid, len(self._split), threads, local_rank)

    def lay(self, task: Task, model: keras.Model, batch: Any) -> None:
        self._chain, split = _chain(model, task, batch, self._split)
        self._stages = cut(self._chain, split, self._devices)
        place(model.variables, [self._devices[stage] for stage in self.stages(model.variables)])

    def stages(self, variables: Sequence[Any]) -> list[int]:
        return owners(self._stages, variables)

    def steps(self, *parts: Any) -> Steps:
        return StagedSteps(*parts, chain=self._chain, stages=self._stages, hybrid=self._hybrid)
