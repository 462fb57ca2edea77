"""How a model runs forward and backward: as a whole (here), or in stages (:mod:`hvtrain.adapters.torch.staged`)."""

from __future__ import annotations

from typing import Any, Callable, Protocol, Sequence

import torch

from hvtrain import probe, tracing
from hvtrain.adapters.torch.batches import arguments, losses, to_device
from hvtrain.adapters.torch.precision import Precision
from hvtrain.adapters.torch.statistics import Statistics
from hvtrain.task import Task


class Passes(Protocol):
    """What the adapter needs to have done with a model.

    ``device`` is where outputs and losses are; ``stages`` tells the stage of each trainable parameter, None where there are
    none.
    """

    device: torch.device
    stages: Sequence[int] | None

    def use(self, precision: Precision, statistics: Statistics) -> None:
        """Said once, before anything below."""

    def learn(self, example: Callable[[], tuple[Any, int]]) -> None:
        """Try a micro-batch (``example`` gives it, and the number of its samples) before training; nothing of it stays.

        Raises UserCodeError for what cannot be trained like this.
        """

    def seed(self, number: int) -> None:
        """Seed the random numbers of the next step on this rank."""

    def run(self, batches: Sequence[Any], counts: Sequence[int], total: float, on_last: Callable[[int], None]) -> float:
        """Forward and backward of all micro-batches, their losses divided by ``total``; the sum of losses (undivided).

        ``on_last`` is called with the number of a stage before its last backward pass.
        """

    def infer(self, batch: Any) -> tuple[Any, Any]:
        """The model's output for ``batch``, and that batch, both on ``device``."""

    def train(self, mode: bool) -> None:
        """Switch to training or to evaluation."""

    def sync(self) -> None:
        """Weights have been changed or moved in memory."""


class WholeModel:
    """Fulfils :class:`Passes` with the model as it is, one micro-batch after another."""

    def __init__(self, model: torch.nn.Module, task: Task, device: torch.device, tick: Callable[[], None]):
        self.device, self.stages = device, None
        self._model, self._task, self._tick = model, task, tick

    def use(self, precision: Precision, statistics: Statistics) -> None:
        self._precision = precision

    def learn(self, example: Callable[[], tuple[Any, int]]) -> None:
        pass  # nothing is traced

    def seed(self, number: int) -> None:
        # Not torch.manual_seed: it also asks every accelerator library and takes 0.7 ms.
        torch.default_generator.manual_seed(number)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(number)

    def run(self, batches: Sequence[Any], counts: Sequence[int], total: float, on_last: Callable[[int], None]) -> float:
        loss_sum = 0.0
        for number, (batch, count) in enumerate(zip(batches, counts)):
            with tracing.span(tracing.COMPUTE, "forward", number):
                with self._precision.context():
                    outputs, batch = self.infer(batch)
                    probe.reached("forward")
                    found = losses(self._task, outputs, batch, count)
                value = found.sum()
                loss_sum += value.item()
            if number == len(batches) - 1:
                on_last(0)
            with tracing.span(tracing.COMPUTE, "backward", number):
                (value / total).backward()
            self._tick()
        return loss_sum

    def infer(self, batch: Any) -> tuple[Any, Any]:
        batch = to_device(batch, self.device)
        inputs, named = arguments(self._task, batch)
        return self._model(*inputs, **named), batch

    def train(self, mode: bool) -> None:
        self._model.train(mode)

    def sync(self) -> None:
        pass
