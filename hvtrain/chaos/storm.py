"""Strikes from outside at random times: when, and whom. Pure; somebody with a clock and power over the workers acts.

::

    time  0 ----x--x---------x----x-------------x--> during
                 gaps: exponential with the mean ``every``; each strike draws its victim among those alive then
"""

from __future__ import annotations

import heapq
import math
import random
from typing import Iterator, NamedTuple, Sequence, TypeVar

from hvtrain.chaos.plan import Fault, Plan

T = TypeVar("T")


class Strike(NamedTuple):
    """``after`` is in seconds from the first round; ``draw`` in [0, 1) chooses the victim, see :func:`pick`.

    ``fault`` and ``number`` are what the claim needs.
    """

    after: float
    kind: str
    draw: float
    fault: int
    number: int


def strikes(plan: Plan, seed: int | None = None) -> Iterator[Strike]:
    """All random strikes of ``plan`` in the order of time; endless if a fault has no ``during``.

    They depend on the plan and ``seed`` (by default the plan's own) alone.
    """
    seed = plan.seed if seed is None else seed
    return heapq.merge(*(_strikes(seed, index, fault) for index, fault in enumerate(plan.faults)
                         if fault.every is not None))


def pick(draw: float, living: Sequence[T]) -> T:
    """The one among ``living`` (not empty) that a draw means."""
    return living[int(draw * len(living))]


def _strikes(seed: int, index: int, fault: Fault) -> Iterator[Strike]:
    assert fault.every is not None
    chance = random.Random(f"{seed}/{index}/storm")
    end = math.inf if fault.during is None else fault.during.seconds
    after, number = 0.0, 0
    while True:
        after -= math.log(1.0 - chance.random()) * fault.every.seconds
        if after > end:
            return
        yield Strike(after, fault.kind, chance.random(), index, number)
        number += 1
