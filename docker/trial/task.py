"""A classification problem made from a seed, at a steady pace: long enough to lose a container and get it back."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from hvtrain import ArraySource, Task


class Blobs(Task):
    """Points around four centres. Each step takes ``pace`` seconds longer than it must."""

    def __init__(self, pace: float = 0.05):
        self.pace = pace

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))

    def data(self, split: str) -> ArraySource:
        rng = np.random.default_rng(0 if split == "train" else 1)
        count = 1000 if split == "train" else 200
        labels = rng.integers(0, 4, count)
        points = rng.normal(size=(count, 16)).astype(np.float32)
        points[np.arange(count), labels] += 3
        return ArraySource(torch.from_numpy(points), torch.from_numpy(labels))

    def loss(self, outputs: torch.Tensor, batch) -> torch.Tensor:
        if torch.is_grad_enabled():
            time.sleep(self.pace)
        return F.cross_entropy(outputs, batch[1], reduction="none")

    def metrics(self, outputs: torch.Tensor, batch) -> dict:
        return {"accuracy": (outputs.argmax(1) == batch[1]).float()}
