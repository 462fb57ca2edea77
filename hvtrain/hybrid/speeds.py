"""What a model's layers take under other conditions than those that they were measured under.

::

                    samples    8    32   128           between two sizes, and beyond them: along a line, layer by layer
    one alone, one thread      x     x     x
    one alone, T threads       x     x     x           other numbers of threads: Amdahl's law, layer by layer
    P at once, E threads each  x     x     x           against the first two: how much slower, where others compute, too

They share the memory's bandwidth, the caches and the clock rate of the processor: so what others cost grows with the cores
that they keep busy. Devices of their own have the first row alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Callable, Sequence

from hvtrain.errors import UsageError
from hvtrain.hybrid.costs import ModelCosts

Mix = Callable[[float, float], float]


@dataclass(frozen=True)
class Speeds:
    """Measurements of one model, those of each condition by samples, the fewest first.

    Attributes:
        alone: nothing else computes; one thread, or a device of its own.
        threaded: nothing else computes; ``threads`` threads. Empty where it was not measured.
        beside: ``at_once`` processes do the same at once, with ``each`` threads. Empty where it was not measured.
        always_recomputes: where stages recompute, whether those do so, too, whose backward pass follows right after forward.
    """

    alone: tuple[ModelCosts, ...]
    threaded: tuple[ModelCosts, ...] = ()
    beside: tuple[ModelCosts, ...] = ()
    threads: int = 1
    at_once: int = 1
    each: int = 1
    always_recomputes: bool = True

    def __post_init__(self) -> None:
        if not self.alone:
            raise ValueError("a model's speed needs at least one measurement")

    @property
    def largest(self) -> ModelCosts:
        """What was measured with the most samples."""
        return self.alone[-1]

    def at(self, samples: int, threads: int = 1) -> ModelCosts:
        """Micro-batches of ``samples``, each computed with ``threads`` threads, while nothing else computes.

        Raises UsageError for less than one sample.
        """
        one = along(self.alone, samples)
        if threads == 1 or self.threads == 1 or not self.threaded:
            return one

        def shared(alone: float, together: float) -> float:
            """Amdahl: with t threads 1 - p + p / t of the time with one; p from the time with all of them."""
            if not alone:
                return together
            part = min(1.0, (1 - together / alone) / (1 - 1 / self.threads))
            return alone * (1 - part + part / threads)

        return mixed(one, along(self.threaded, samples), shared, lambda alone, together: alone)

    def slowdown(self, samples: int, computing: int, threads: int = 1) -> float:
        """How many times as long as alone micro-batches take where ``computing`` do so at once, each with ``threads``."""
        return self._slowed(samples, computing, threads, seconds)

    def update_slowdown(self, samples: int, computing: int, threads: int = 1) -> float:
        """The same of the optimizer's step."""
        return self._slowed(samples, computing, threads, lambda costs: costs.update)

    def _slowed(self, samples: int, computing: int, threads: int, of: Callable[[ModelCosts], float]) -> float:
        if computing == 1 or self.at_once == 1 or not self.beside:
            return 1.0
        few, many = self.beside[0].batch, self.beside[-1].batch
        nearest = min(max(samples, few), many)  # beyond what was measured the ratio stays as it is
        alone = of(self.at(nearest, self.each))
        most = max(1.0, of(along(self.beside, nearest)) / alone) if alone else 1.0
        others = (computing - 1) * threads / ((self.at_once - 1) * self.each)
        return 1 + (most - 1) * others


def seconds(costs: ModelCosts) -> float:
    """Of all layers, forward and backward."""
    return math.fsum(layer.forward + layer.backward for layer in costs.layers)


def slowest(several: Sequence[Sequence[ModelCosts]]) -> tuple[ModelCosts, ...]:
    """Of processes that measured at once with the same sizes, at each size the one that took the longest; what only some
    have measured is left out."""
    return tuple(max(alike, key=seconds) for alike in zip(*several))


def along(points: Sequence[ModelCosts], samples: int) -> ModelCosts:
    """Between two of ``points`` on the line through them; beyond all on that through the last two, or in proportion where
    there is one only. More samples never take less time there, and fewer never more, nor less than in proportion."""
    if samples < 1:
        raise UsageError(f"A micro-batch has at least 1 sample, got {samples}.")
    high = next((number for number, point in enumerate(points) if point.batch >= samples), len(points) - 1)
    if len(points) == 1 or points[high].batch == samples:
        return points[high].at(samples)
    high = max(high, 1)
    low, top = points[high - 1], points[high]
    span, way = top.batch - low.batch, samples - low.batch

    def line(fewer: float, more: float) -> float:
        found = fewer + (more - fewer) * way / span
        return min(max(found, fewer * samples / low.batch), fewer) if way < 0 else max(found, more) if way > span else found

    def size(fewer: int, more: int) -> int:  # in whole numbers, rounded up
        found = fewer - (fewer - more) * way // span
        return max(0, min(found, fewer)) if way < 0 else max(found, more) if way > span else found

    return replace(mixed(low, top, line, size), batch=samples)


def mixed(one: ModelCosts, other: ModelCosts, seconds: Mix, size: Callable[[int, int], int]) -> ModelCosts:
    """``one`` with all ``seconds`` and the ``size`` in bytes of all activations made of those of both."""
    layers = tuple(replace(
        a, forward=seconds(a.forward, b.forward), backward=seconds(a.backward, b.backward), saved=size(a.saved, b.saved),
        output=size(a.output, b.output)) for a, b in zip(one.layers, other.layers))
    return replace(one, layers=layers, update=seconds(one.update, other.update),
                   overhead=seconds(one.overhead, other.overhead), input=size(one.input, other.input))
