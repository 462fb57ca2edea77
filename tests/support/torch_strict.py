"""A model with assertions, apart from the tests because pytest rewrites those of test modules."""

from __future__ import annotations

import torch
from torch import nn


class Strict(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        assert x.shape[1] < 5, "too long"
        assert x.dim() == 3
        made = torch.zeros_like(x)
        made[:, 1:] = self.a(x)[:, 1:]
        made[:, 0] += 1
        return self.b(made)
