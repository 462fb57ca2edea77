"""A model in stages: what ``hybrid`` in the job file asks for, done with :mod:`hvtrain.hybrid.torch`."""

from __future__ import annotations

from typing import Any, Callable, Sequence

import torch

from hvtrain.adapters.torch.batches import arguments, losses, to_device
from hvtrain.adapters.torch.precision import Precision
from hvtrain.adapters.torch.statistics import Statistics
from hvtrain.config.hybrid import HybridConfig
from hvtrain.errors import UsageError, UserCodeError
from hvtrain.hybrid.openings import unsettled
from hvtrain.hybrid.torch import checking, example
from hvtrain.hybrid.torch.chain import Chain, chain, whole
from hvtrain.hybrid.torch.parts import Part, cut
from hvtrain.hybrid.torch.pipeline import Microbatch, Pipeline
from hvtrain.task import Task


def devices(config: HybridConfig, local_rank: int) -> list[torch.device]:
    """The device of each stage of the host's worker number ``local_rank``.

    Raises UsageError where stages, micro-batches or split are not settled, or there are too few GPUs.
    """
    stages = config.stages
    if not isinstance(stages, int) or not isinstance(config.microbatches, int) or config.split is None:
        raise unsettled(config)
    if isinstance(config.devices, list):
        return [_device(name) for name in config.devices]
    if config.devices == "cpu" or not torch.cuda.is_available():
        return [torch.device("cpu")] * stages
    there, first = torch.cuda.device_count(), local_rank * stages
    if first + stages > there:
        raise UsageError(f"worker {local_rank} of this host needs {stages} GPUs of its own, from number {first} on, but "
                         f"there are {there}. Start at most {there // stages} workers here, or set hybrid.stages or "
                         "hybrid.devices")
    return [torch.device("cuda", first + stage) for stage in range(stages)]


def _device(name: str) -> torch.device:
    """Raises UsageError for one that is not there."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UsageError(f"hybrid.devices has {name!r}; with PyTorch a device is cpu, or cuda:0, cuda:1 and so on")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"hybrid.devices has {name!r}, but PyTorch sees {torch.cuda.device_count()} GPUs. Set "
                         "hybrid.devices=cpu, or to the devices that are there")
    return device


def _chain(model: torch.nn.Module, task: Task, split: list[int]) -> tuple[Chain, list[int]]:
    """The model's links, and how many go to each stage. For one stage no model has to be cut."""
    inputs = example.inputs(task) if example.is_needed(model) else None
    if len(split) > 1:
        return chain(model, inputs, check=False), split
    try:
        found = chain(model, inputs, check=False)
    except UserCodeError:
        found = whole(model)
    return found, [len(found.links)]


class StagedModel:
    """Fulfils :class:`hvtrain.adapters.torch.passes.Passes` with a pipeline.

    The model's modules are moved to their stages' devices; its parameters stay the same objects. Raises UserCodeError
    if it cannot be cut, UsageError if ``hybrid`` does not fit it.
    """

    def __init__(self, model: torch.nn.Module, task: Task, config: HybridConfig, local_rank: int,
                 tick: Callable[[], None]):
        places = devices(config, local_rank)
        assert config.split is not None
        self._model, self._task, self._config, self._tick = model, task, config, tick
        self._first, self.device = places[0], places[-1]
        self._chain, split = _chain(model, task, config.split)
        changing = Statistics(model, task.averaged_buffers).buffers
        self._parts: list[Part] = cut(self._chain, split, places, changing)
        stage_of = {id(parameter): stage for stage, part in enumerate(self._parts) for parameter in part.parameters()}
        self.stages = [stage_of.get(id(parameter), 0) for parameter in model.parameters() if parameter.requires_grad]
        self._base, self._learned = 0, False

    def use(self, precision: Precision, statistics: Statistics) -> None:
        self._statistics = statistics
        self._pipeline = Pipeline(
            self._parts, schedule=self._config.schedule, recompute=self._config.recompute, statistics=statistics.buffers,
            context=lambda device: precision.context(device, cache=False))

    def learn(self, example: Callable[[], tuple[Any, int]]) -> None:
        batch, count = example()
        microbatch = self._microbatch(batch, count, 1.0, [])
        if self._first == self.device and len(self._chain.links) > 1:  # elsewhere no device holds all of the model
            self._compare(microbatch)
        self._pipeline.learn(microbatch)
        self._statistics.refresh()
        self._learned = True

    def _compare(self, microbatch: Microbatch) -> None:
        """Raise UserCodeError if the chain is another function than the model."""
        for inputs in (checking.few(microbatch.inputs, microbatch.named), (microbatch.inputs, dict(microbatch.named))):
            if checking.runs(self._model, inputs):
                checking.check(self._model, self._chain.links, self._chain.source, self._chain.packed, inputs)
                break
        self.train(True)

    def seed(self, number: int) -> None:
        self._base = number
        torch.default_generator.manual_seed(number)  # for Task.inputs

    def run(self, batches: Sequence[Any], counts: Sequence[int], total: float, on_last: Callable[[int], None]) -> float:
        if batches and not self._learned:
            self.learn(lambda: (batches[0], counts[0]))
        values: list[torch.Tensor] = []
        self._pipeline.run([self._microbatch(batch, count, total, values) for batch, count in zip(batches, counts)],
                           seed=self._base, on_last=on_last, on_done=self._tick)
        loss_sum = 0.0
        for value in values:
            loss_sum += value.item()
        return loss_sum

    def _microbatch(self, batch: Any, count: int, total: float, values: list[torch.Tensor]) -> Microbatch:
        """``values`` gets the sum of its losses."""
        batch = to_device(batch, self._first)
        inputs, named = arguments(self._task, batch)

        def loss(outputs: Any) -> torch.Tensor:
            # The same batch: Task.inputs may have put something into it, such as the targets of mixed samples.
            value = losses(self._task, outputs, to_device(batch, self.device), count).sum()
            values.append(value.detach())
            return value / total

        return Microbatch(inputs, loss, named)

    def infer(self, batch: Any) -> tuple[Any, Any]:
        batch = to_device(batch, self._first)
        inputs, named = arguments(self._task, batch)
        return self._pipeline.infer(inputs, named), to_device(batch, self.device)

    def train(self, mode: bool) -> None:
        self._pipeline.train(mode)

    def sync(self) -> None:
        self._pipeline.sync()
