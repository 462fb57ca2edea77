"""Exponential moving average of the weights (Polyak averaging), kept beside the model."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Iterator

import torch


class Averages:
    """``average = d * average + (1 - d) * weight`` after every step, for the trainable floating-point weights.

    ``d = min(decay, (1 + step) / (10 + step))``: the average forgets the initial weights quickly, however
    long its memory is later (as TensorFlow's ExponentialMovingAverage with ``num_updates``).
    """

    def __init__(self, model: torch.nn.Module, decay: float):
        self._decay = decay
        self._weights = {name: p for name, p in model.named_parameters()}
        self.tensors = {name: p.detach().clone() for name, p in self._weights.items()}
        self._moving = [name for name, p in self._weights.items() if p.requires_grad and p.is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the weights after ``step`` (from 0)."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_([self.tensors[name] for name in self._moving],
                             [self._weights[name].detach() for name in self._moving], 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within this context the model computes with the averages; no copy is made."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, parameter in self._weights.items():
            parameter.data, self.tensors[name] = self.tensors[name], parameter.data
