"""Gradients as views of flat buckets, reduced while backward still runs.

::

    backward --grad of p--> hook: copy into bucket view --bucket full--> codec.start --...--> codec.finish
                                   (later micro-batches add in place)

The last bucket carries a tail behind its gradients: the sum of losses, the flags, and the statistics of
normalisation layers. It starts when these are known, once backward is over. So a step needs no collective operation beside
those of its gradients. With a lossy codec the tail goes by itself, as it is.

Where the model is cut into stages, each has buckets of its own, which its thread fills and starts while the stages
before it still compute.
"""

from __future__ import annotations

import time
from typing import Any, Callable, Sequence

import torch

from hvtrain import probe, tracing
from hvtrain.adapters.torch.statistics import Statistics
from hvtrain.comm import buckets as layout
from hvtrain.comm.codecs import Codec, EngineCodec
from hvtrain.engine.world import World
from hvtrain.errors import UserCodeError

PLAIN = EngineCodec("none")
FLAGS = 4
"""Room for flags in the tail."""
LINE = 16
"""Buckets begin at multiples of so many numbers: a line of the processor's cache."""


def _on_cpu(bucket: layout.Bucket) -> bool:
    dtype, device, _ = bucket.kind
    return dtype == torch.float32 and device.type == "cpu"


class FlatGradients:
    """The gradient buckets of a model.

    Args:
        parameters: trainable parameters in the model's order, each once.
        statistics: what normalisation layers contribute to the tail.
        bucket_bytes, first_bytes: size limits, see :func:`hvtrain.comm.buckets.plan`.
        codec: how buckets travel.
        zeros: makes a float32 vector of so many zeros on the CPU, for instance in memory that neighbours can read.
        stages: the stage of each parameter; left out, the model is not in stages.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter], statistics: Statistics, *,
                 bucket_bytes: int, first_bytes: int, codec: Codec = PLAIN,
                 zeros: Callable[[int], torch.Tensor] = torch.zeros, stages: Sequence[int] | None = None):
        self._codec = codec
        self._parameters = list(parameters)
        self._statistics = statistics
        self._staged = stages is not None
        self._stages = [0] * len(self._parameters) if stages is None else list(stages)
        items = [layout.Item(i, p.numel(), p.element_size(), (p.dtype, p.device, self._stages[i]))
                 for i, p in enumerate(self._parameters)]
        items.sort(key=lambda item: self._stages[item.index])  # the first stage ends last, and carries the tail
        self._plan = layout.plan(items, bucket_bytes, first_bytes)
        self._tail_size = 1 + FLAGS + statistics.elements
        self._flats: list[torch.Tensor] = []
        self._views: dict[int, torch.Tensor] = {}
        self._bucket_of: dict[int, int] = {}
        sizes = [self._size(number) for number in range(len(self._plan))]
        pool = zeros(sum(-(-size // LINE) * LINE for size, bucket in zip(sizes, self._plan) if _on_cpu(bucket)))
        for number, size in enumerate(sizes):
            if _on_cpu(self._plan[number]):
                flat, pool = pool[:size], pool[-(-size // LINE) * LINE:]
            else:
                flat = torch.zeros(size, dtype=self._plan[number].kind[0], device=self._plan[number].kind[1])
            self._add(flat, number)
        tail_device = statistics.device or self._flats[-1].device
        carrier = self._flats[-1]
        if not codec.lossy and carrier.dtype == torch.float32 and carrier.device == tail_device:
            self._tail = carrier[self._plan[-1].elements:]
        else:  # a loss summed in half precision would be useless
            self._tail = torch.zeros(self._tail_size, device=tail_device)
            self._flats.append(self._tail)
        self._missing = [0] * len(self._plan)
        self._handles: list[Any] = [None] * len(self._flats)
        self._started = [False] * len(self._flats)
        # Of each stage: the parameters whose gradients its last backward pass has made.
        self._arrived: list[set[int]] = [set() for _ in range(max(self._stages, default=0) + 1)]
        self._reducing: set[int] = set()  # stages in which that has begun; some may have no parameter of their own
        self._reduced_before = 0.0
        self._world: World | None = None
        self._hooks = [p.register_post_accumulate_grad_hook(self._hook(i)) for i, p in enumerate(self._parameters)]

    def _size(self, number: int) -> int:
        bucket = self._plan[number]
        carries = number == len(self._plan) - 1 and bucket.kind[0] == torch.float32 and not self._codec.lossy
        return bucket.elements + (self._tail_size if carries else 0)

    def _add(self, flat: torch.Tensor, number: int) -> None:
        self._flats.append(flat)
        for slot in self._plan[number].slots:
            parameter = self._parameters[slot.index]
            self._views[slot.index] = flat[slot.offset:slot.offset + slot.elements].view_as(parameter)
            self._bucket_of[slot.index] = number

    def use(self, world: World) -> None:
        """Reduce over ``world`` from now on."""
        self._world = world

    def begin(self) -> None:
        """Forget the gradients of the step before."""
        for parameter in self._parameters:
            parameter.grad = None
        self._tail.zero_()
        self._missing = [len(bucket.slots) for bucket in self._plan]
        self._started = [False] * len(self._flats)
        self._reducing.clear()
        for arrived in self._arrived:
            arrived.clear()
        self._reduced_before = self._world.reduced() if self._world is not None else 0.0

    def last(self, stage: int = 0) -> None:
        """The coming backward pass of ``stage`` is its last: each of its buckets is reduced as soon as it is full, but the
        one that carries the tail. Called by the thread that runs it."""
        self._reducing.add(stage)

    def finish(self, loss_sum: float, flags: Sequence[float], weight: float) -> tuple[
            float, tuple[float, ...], float, float]:
        """Start what backward left out, wait for all.

        ``weight`` is this rank's share of the global batch, for the statistics. Returns the sum of losses, the flags, and the
        seconds that were waited and that reductions went on unseen.
        """
        assert len(flags) <= FLAGS
        head = torch.tensor([loss_sum, *flags])
        self._tail[:len(head)] = head.to(self._tail.device)
        self._statistics.write(self._tail[1 + FLAGS:], weight)
        for index, parameter in enumerate(self._parameters):
            if parameter.grad is None:  # no sample of this rank, or no path to the loss
                view = self._views[index]
                view.zero_()
                parameter.grad = view
        for number in range(len(self._flats)):
            if not self._started[number]:
                self._start(number)
        started = time.perf_counter()
        assert self._world is not None
        with tracing.span(tracing.WAIT, "reductions"):
            for number, handle in enumerate(self._handles):
                with tracing.span(tracing.WAIT, "bucket", number):
                    self._carrier(number).finish(self._world, handle)
        waited = time.perf_counter() - started
        hidden = max(0.0, self._world.reduced() - self._reduced_before - waited)
        head = self._tail[:1 + FLAGS].tolist()
        return head[0], tuple(head[1:]), waited, hidden

    def adopt_statistics(self) -> None:
        """Give the normalisation layers the averaged statistics."""
        self._statistics.adopt(self._tail[1 + FLAGS:])

    def finite(self) -> bool:
        """Whether all gradients are finite numbers; the same on all ranks once they are reduced.

        A sum is finite only if its terms are, short of an overflow that no sane gradient comes near.
        """
        return all(bool(torch.isfinite(flat[:bucket.elements].sum())) for flat, bucket in zip(self._flats, self._plan))

    def norm(self) -> torch.Tensor:
        """L2 norm over all gradients (the tail left out). For a model in stages its bits do not depend on the stages."""
        if self._staged:
            norms = torch._foreach_norm([self._views[index] for index in range(len(self._parameters))])
            return torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))
        parts = [torch.linalg.vector_norm(flat[:bucket.elements])
                 for flat, bucket in zip(self._flats, self._plan)]
        return torch.linalg.vector_norm(torch.stack([part.to(parts[0].device) for part in parts]))

    def scale(self, factor: torch.Tensor) -> None:
        """Multiply all gradients by ``factor``."""
        for flat, bucket in zip(self._flats, self._plan):
            flat[:bucket.elements].mul_(factor.to(flat.device))

    def _start(self, number: int) -> None:
        assert self._world is not None
        name = f"grad.{number}"
        tracing.queued(name, number)
        self._handles[number] = self._carrier(number).start(self._world, self._flats[number], name)
        self._started[number] = True
        probe.reached("bucket")

    def _carrier(self, number: int) -> Codec:
        return self._codec if number < len(self._plan) else PLAIN  # the tail, if it is by itself

    def _hook(self, index: int):
        number, view, stage = self._bucket_of[index], self._views[index], self._stages[index]
        arrived, early = self._arrived[stage], self._bucket_of[index] < len(self._flats) - 1

        def on_gradient(parameter: torch.nn.Parameter) -> None:
            if parameter.grad.layout is not torch.strided:
                raise UserCodeError(f"a parameter of shape {tuple(parameter.shape)} has a sparse gradient, which "
                                    "hvtrain cannot reduce; build its layer with sparse=False")
            if parameter.grad is not view:  # the first micro-batch: autograd has handed over a fresh tensor
                view.copy_(parameter.grad)
                parameter.grad = view
            if stage in self._reducing:
                if index in arrived:  # its bucket may be on its way already
                    raise UserCodeError(
                        f"the gradient of a parameter of shape {tuple(parameter.shape)} arrived twice in one backward "
                        "pass, as it does when a layer is used in several re-entrant activation checkpoints; call "
                        "torch.utils.checkpoint.checkpoint with use_reentrant=False")
                if not arrived:
                    probe.reached("backward")
                arrived.add(index)
                self._missing[number] -= 1
                if self._missing[number] == 0 and early:
                    self._start(number)

        return on_gradient
