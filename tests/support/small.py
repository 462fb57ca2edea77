"""One rank's adapter on a small task, driven step by step, without a loop."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Callable, Mapping

import torch
from torch import nn
from torch.nn import functional as F

from hvtrain import ArraySource, Job, Task
from hvtrain.adapters.base import Reduced
from hvtrain.adapters.torch.adapter import TorchAdapter
from hvtrain.engine.world import World

SAMPLES = 12


class Small(Task):
    """Regression through BatchNorm. ``factors`` maps a step to what rank 1's losses (or all, if there is one) are
    multiplied by there: how a test makes gradients overflow."""

    def __init__(self, factors: Mapping[int, float] | None = None, loss: Callable | None = None):
        self.factors, self.step, self.rank, self._loss = factors or {}, 0, 1, loss
        generator = torch.Generator().manual_seed(3)
        self.points = torch.randn(SAMPLES, 8, generator=generator)
        self.wanted = self.points[:, :2].square().sum(1, keepdim=True)

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(8, 40), nn.BatchNorm1d(40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(),
                             nn.Linear(40, 1))

    def data(self, split: str) -> ArraySource:
        return ArraySource(self.points, self.wanted)

    def loss(self, outputs: torch.Tensor, batch: Any) -> torch.Tensor:
        if self._loss is not None:
            return self._loss(outputs, batch)
        losses = F.mse_loss(outputs.float(), batch[1], reduction="none").mean(1)
        return losses * self.factors.get(self.step, 1.0) if self.rank == 1 else losses


class Rank:
    """An adapter of a ``world`` whose ranks share each step's samples evenly."""

    def __init__(self, world: World, task: Small | None = None, **sections: Any):
        settings = {"task": {"target": "t:T"}, "optim": {"name": "adamw", "lr": 1e-2}, **sections}
        self.task, self.world = task or Small(), world
        self.task.rank = world.rank if world.size > 1 else 1
        self.adapter = TorchAdapter(Job.model_validate(settings), self.task, threads=1)
        self.adapter.build()
        self.adapter.join(world)
        self.step = 0
        self.metrics: Mapping[str, float] = {}

    def gradients(self) -> Reduced:
        self.task.step = self.step
        self.adapter.seed(self.step)
        share = SAMPLES // self.world.size
        mine = slice(self.world.rank * share, (self.world.rank + 1) * share)
        return self.adapter.gradients([(self.task.points[mine], self.task.wanted[mine])], [share], SAMPLES, [0.0])

    def train(self, steps: int) -> list[Reduced]:
        """Take so many steps."""
        results = []
        for _ in range(steps):
            results.append(self.gradients())
            self.metrics = self.adapter.apply(self.step, 1.0)
            self.step += 1
        return results

    def state(self) -> dict[str, str]:
        """All of the state that a checkpoint holds, hashed by name."""
        found = {f"{group}/{name}": hashlib.sha256(bytes(blob.data)).hexdigest()
                 for group, blobs in self.adapter.export().items() for name, blob in blobs.items()}
        return {**found, "scalars": json.dumps(self.adapter.scalars(), sort_keys=True)}

    def pass_on(self, other: Rank) -> None:
        """Give ``other`` this rank's state by way of what a checkpoint would hold."""
        other.adapter.restore(self.adapter.export(), json.loads(json.dumps(self.adapter.scalars())))
        other.step = self.step
