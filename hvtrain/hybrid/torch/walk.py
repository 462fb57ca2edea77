"""One micro-batch through a chain, link by link, with each link's time and sizes.

::

    link 0 --detach--> link 1 --detach--> link 2 -> loss       forward: each link timed by itself
    grads <----------- grads <----------- grads <---+          backward: autograd.grad of each, summed up as in training
"""

from __future__ import annotations

import time
from statistics import median
from typing import Any, Callable, ContextManager, Iterable, Iterator, Sequence

import torch
from torch.utils import _pytree as pytree

from hvtrain.adapters.torch.batches import arguments, losses
from hvtrain.hybrid.torch import checking, links
from hvtrain.hybrid.torch.chain import Chain
from hvtrain.task import Task

Times = tuple[list[float], list[float], float]
ROUNDS = (3, 14)
"""Fewest and most passes of which the median is taken."""
BUDGET = 2.0
"""Seconds after which no further pass begins."""
LONGEST = 5.0
"""Seconds that a pass may take. Where it would be more, a smaller micro-batch says as well what a sample takes."""


class Walk:
    """Runs micro-batches. The model is in training mode; nothing of it is changed but buffers and random numbers.

    Args:
        context: what forward runs in.
    """

    def __init__(self, cut: Chain, task: Task, device: torch.device, context: Callable[[], ContextManager[Any]]):
        self._cut, self._task, self._device, self._context = cut, task, device, context
        self._weights = [[p for p in link.parameters() if p.requires_grad] for link in cut.links]
        self._sums = [[torch.zeros_like(p) for p in weights] for weights in self._weights]

    def times(self, batches: Sequence[tuple[Any, int]]) -> list[Times]:
        """For each (batch, count), the smallest first, median seconds of each link's forward and backward pass, and of what
        comes before. The last ones are left out if they would take very long, or more memory than a GPU has left.

        The batches take turns, so that what slows the machine down for a while does so to all of them.
        """
        smallest = batches[0][1]
        self._once(*batches[0])  # what is done once only counts for nothing
        sample = sum(map(sum, self._once(*batches[0])[:2])) / smallest
        batches = [(batch, count) for batch, count in batches if count == smallest or count * sample <= LONGEST]
        batches = batches[:1] + self._fitting(batches[1:])
        rounds: list[list[Times]] = []
        began = time.perf_counter()
        while len(rounds) < ROUNDS[0] or (len(rounds) < ROUNDS[1] and time.perf_counter() - began < BUDGET):
            rounds.append([self._once(batch, count) for batch, count in batches])
        return [(_medians(forward), _medians(backward), median(overhead))
                for forward, backward, overhead in (zip(*runs) for runs in zip(*rounds))]

    def _fitting(self, batches: Sequence[tuple[Any, int]]) -> list[tuple[Any, int]]:
        """The first of ``batches``, up to one for which memory is too small: what a pass takes beside the activations that
        it keeps (the largest layer's workspace) is not known before."""
        for number, (batch, count) in enumerate(batches):
            try:
                self._once(batch, count)
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                return list(batches[:number])
        return list(batches)

    def _once(self, batch: Any, count: int) -> Times:
        forward, backward = [], []
        begin = clock(self._device)
        args, named = arguments(self._task, batch)
        overhead = clock(self._device) - begin
        passed = []
        with self._context():
            for inputs, value, seconds in self._walk(args, named, batch, count):
                passed.append((inputs, _differentiable(value)))
                forward.append(seconds)
        gradients: list[torch.Tensor | None] = [torch.ones_like(loss) for loss in passed[-1][1]]
        for number in reversed(range(len(passed))):
            inputs, outputs = passed.pop()
            begin = clock(self._device)
            gradients = self._back(number, inputs, outputs, gradients)
            backward.append(clock(self._device) - begin)
        return forward, backward[::-1], overhead

    def _walk(self, args: Any, named: Any, batch: Any, count: int) -> Iterator[tuple[list[torch.Tensor], Any, float]]:
        """Yields of each link the differentiable tensors that it took, what it gave, and its seconds.

        What the last one gave is the loss.
        """
        given = tuple(args)
        last = len(self._cut.links) - 1
        for number, link in enumerate(self._cut.links):
            inputs = pytree.tree_map(_border, (given, named))
            leaves = _differentiable(inputs)
            if number in self._cut.inplace:
                inputs = links.clones(inputs)
            begin = clock(self._device)
            value = link(*inputs[0], **inputs[1])
            if number == last:
                value = losses(self._task, value, batch, count).sum() / count
            seconds = clock(self._device) - begin
            given, named = (value,) if number + 1 in self._cut.packed else links.spread(value), {}
            yield leaves, value, seconds

    def _back(self, number: int, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor],
              gradients: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None]:
        """Gradients of ``inputs`` from those of ``outputs``; those of the weights are added up as in training."""
        given = [(out, g) for out, g in zip(outputs, gradients) if g is not None]
        wanted = [*inputs, *self._weights[number]]
        if not given or not wanted:
            return [None] * len(inputs)
        found = checking.gradients([out for out, _ in given], wanted, [g for _, g in given])
        for total, gradient in zip(self._sums[number], found[len(inputs):]):
            if gradient is not None:
                total.add_(gradient)
        return list(found[:len(inputs)])

    def sizes(self, batch: Any, count: int) -> tuple[list[int], list[int], int]:
        """Bytes that backward keeps of each link, and bytes that it hands on; bytes that the first is given."""
        args, named = arguments(self._task, batch)
        known = {_storage(t) for t in (*self._cut.model.parameters(), *self._cut.model.buffers())}
        raw = {_storage(leaf) for leaf in pytree.tree_leaves((args, named)) if isinstance(leaf, torch.Tensor)}
        saved, outputs, kept = [], [], []

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            key = _storage(tensor)
            if key not in known:
                known.add(key)
                kept.append(tensor)  # so that no other tensor gets its address
                saved[-1] += tensor.nbytes if key in raw else tensor.untyped_storage().nbytes()
            return tensor

        walk = self._walk(args, named, batch, count)
        with self._context(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            for _ in self._cut.links:
                saved.append(0)
                _, value, _ = next(walk)
                outputs.append(_bytes(value))
        return saved, outputs, _bytes((args, named))


def _medians(rounds: Iterable[Sequence[float]]) -> list[float]:
    return [median(times) for times in zip(*rounds)]


def _border(value: Any) -> Any:
    """A value as the next stage takes it: a leaf of its own."""
    return value.detach().requires_grad_(value.requires_grad) if isinstance(value, torch.Tensor) else value


def _differentiable(values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, torch.Tensor) and leaf.requires_grad]


def _bytes(values: Any) -> int:
    return sum(leaf.nbytes for leaf in pytree.tree_leaves(values) if isinstance(leaf, torch.Tensor))


def _storage(tensor: torch.Tensor) -> tuple[torch.device, int]:
    return tensor.device, tensor.untyped_storage().data_ptr()


def clock(device: torch.device) -> float:
    """Seconds, when all that ``device`` was given is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
