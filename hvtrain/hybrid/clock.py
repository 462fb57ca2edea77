"""How long a step takes: a schedule run through on paper, with the seconds of each stage's passes.

Two stages, two micro-batches, backward twice as long as forward, 1f1b::

    stage 0  F0 F1 .. .. B0 B0 .. B1 B1      a pass starts when its stage is free and its neighbour's pass has arrived:
    stage 1  .. F0 B0 B0 F1 B1 B1 .. ..      forward from the stage before, backward from the one after

Stages that share a processor slow each other down while they compute at once. All of them by the same factor, so what
begins and ends before what stays the same, and the step above is only stretched, here by 1.5 where both are at work::

    stage 0  F0 F1 .. .. B0   B0    .. B1 B1
    stage 1  .. F0  B0 B0  F1    B1 B1 .. ..
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Sequence

from hvtrain.errors import UsageError
from hvtrain.hybrid.schedule import passes, source


@dataclass(frozen=True)
class Makespan:
    """A step by the clock, in seconds from its beginning, one number for each stage.

    ``seconds``: when the last pass has ended; ``busy``: how long a stage computes; ``ready``: when its last backward
    pass has ended, so that all of its gradients are there.
    """

    seconds: float
    busy: tuple[float, ...]
    ready: tuple[float, ...]

    @property
    def bubble(self) -> float:
        """The share of all stages' time in which nothing is computed."""
        return 1 - sum(self.busy) / (len(self.busy) * self.seconds) if self.seconds else 0.0


def step_time(name: str, forward: Sequence[float], backward: Sequence[float], transfer: Sequence[float],
              microbatches: int, slowdown: Sequence[float] = ()) -> Makespan:
    """Run the schedule ``name`` over ``microbatches``, all of one size.

    Args:
        forward, backward: seconds of one micro-batch's pass in each stage; with recomputation, backward has forward's
            in it.
        transfer: seconds that a micro-batch takes over each border between two stages, one less than stages. It delays
            the stage that waits for it, and keeps neither of the two from computing.
        slowdown: how many times as long things take while 1, 2, ... stages compute; empty where they take no notice of
            each other.

    Raises UsageError where the lengths do not fit, a time is below 0 or not finite, or the schedule is unknown.
    """
    stages = len(forward)
    if len(backward) != stages or len(transfer) != stages - 1:
        raise UsageError(f"{stages} stages need as many times forward and backward, and {stages - 1} of transfer; got "
                         f"{stages}, {len(backward)} and {len(transfer)}.")
    if not all(0 <= time < math.inf for time in (*forward, *backward, *transfer)):
        raise UsageError(f"Times must be finite seconds, at least 0, got {[*forward]}, {[*backward]}, {[*transfer]}.")
    lasts = {"forward": forward, "backward": backward}
    ended: dict[str, list[list[float]]] = {kind: [[] for _ in range(stages)] for kind in lasts}  # [stage][micro-batch]
    todo = [deque(passes(name, stage, stages, microbatches)) for stage in range(stages)]
    free = [0.0] * stages
    spans: list[tuple[float, float, int]] = []  # from, to, stage
    waiting = deque(range(stages))  # stages whose next pass may have become possible; each runs on as far as it can
    while waiting:
        stage = waiting.popleft()
        while todo[stage]:
            one = todo[stage][0]
            ends, theirs = ended[one.kind], source(one, stage, stages)
            if theirs is not None and one.microbatch >= len(ends[theirs]):
                break
            arrives = 0.0 if theirs is None else ends[theirs][one.microbatch] + transfer[min(stage, theirs)]
            begin = max(free[stage], arrives)
            free[stage] = begin + lasts[one.kind][stage]
            spans.append((begin, free[stage], stage))
            ends[stage].append(free[stage])
            todo[stage].popleft()
            waiting.extend(other for other in (stage - 1, stage + 1) if 0 <= other < stages and other not in waiting)
    assert not any(todo), f"{name} waits for itself"
    if slowdown:
        return _stretched(spans, free, slowdown)
    busy = tuple(microbatches * (forth + back) for forth, back in zip(forward, backward))
    return Makespan(max(free), busy, tuple(free))


def _stretched(spans: Sequence[tuple[float, float, int]], ends: Sequence[float], slowdown: Sequence[float]) -> Makespan:
    """The step of ``spans`` where the clock runs slower the more stages compute."""
    changes: dict[float, int] = {0.0: 0}
    for begin, end, _ in spans:
        changes[begin] = changes.get(begin, 0) + 1
        changes[end] = changes.get(end, 0) - 1
    real: dict[float, float] = {}
    now = before = 0.0
    computing = 0
    for at in sorted(changes):
        now += (at - before) * (slowdown[computing - 1] if computing else 1.0)
        real[at], before = now, at
        computing += changes[at]
    busy = [0.0] * len(ends)
    for begin, end, stage in spans:
        busy[stage] += real[end] - real[begin]
    return Makespan(now, tuple(busy), tuple(real[end] for end in ends))
