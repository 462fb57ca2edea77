"""What each stage does, in which order: pure generators of passes over the micro-batches of one step.

Three stages and four micro-batches, forward and backward equally long (:func:`table` draws it)::

    gpipe                                  all forward, then all backward
    stage 0  F0 F1 F2 F3 .  .  .  .  B0 B1 B2 B3
    stage 1  .  F0 F1 F2 F3 .  .  B0 B1 B2 B3 .
    stage 2  .  .  F0 F1 F2 F3 B0 B1 B2 B3 .  .

    1f1b                                   backward as early as possible: K - s micro-batches are kept, not M
    stage 0  F0 F1 F2 .  .  B0 F3 B1 .  B2 .  B3
    stage 1  .  F0 F1 .  B0 F2 B1 F3 B2 .  B3 .
    stage 2  .  .  F0 B0 F1 B1 F2 B2 F3 B3 .  .

Both take the same time, and both run backward in the order 0, 1, 2, ...: sums of gradients have the same bits whatever
the schedule and the number of stages.

GPipe: Huang et al., 2019 (arXiv:1811.06965). 1F1B: Harlap et al., 2018, PipeDream (arXiv:1806.03377), in the form that
is flushed in every step: Narayanan et al., 2021 (arXiv:2104.04473).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, ClassVar, Iterator, Literal, Mapping, Union

from hvtrain.errors import UsageError

Name = Literal["1f1b", "gpipe"]


@dataclass(frozen=True)
class Forward:
    """The forward pass of a micro-batch, counted from 0."""

    microbatch: int
    kind: ClassVar[str] = "forward"

    def __str__(self) -> str:
        return f"F{self.microbatch}"


@dataclass(frozen=True)
class Backward:
    """The backward pass of a micro-batch, counted from 0."""

    microbatch: int
    kind: ClassVar[str] = "backward"

    def __str__(self) -> str:
        return f"B{self.microbatch}"


Pass = Union[Forward, Backward]


def gpipe(stage: int, stages: int, microbatches: int) -> Iterator[Pass]:
    """All forward passes, then all backward passes. Raises UsageError for a stage or a count that cannot be."""
    _check(stage, stages, microbatches)
    yield from map(Forward, range(microbatches))
    yield from map(Backward, range(microbatches))


def one_forward_one_backward(stage: int, stages: int, microbatches: int) -> Iterator[Pass]:
    """``stages - stage`` forward passes, then one backward and one forward in turn. Errors as of :func:`gpipe`."""
    _check(stage, stages, microbatches)
    ahead = min(microbatches, stages - stage)  # by then the first micro-batch has come back
    yield from map(Forward, range(ahead))
    for number in range(microbatches):
        yield Backward(number)
        if number + ahead < microbatches:
            yield Forward(number + ahead)


_SCHEDULES: Mapping[str, Callable[[int, int, int], Iterator[Pass]]] = {"1f1b": one_forward_one_backward, "gpipe": gpipe}


def passes(name: str, stage: int, stages: int, microbatches: int) -> Iterator[Pass]:
    """The passes of ``stage`` (from 0) in the schedule ``name``, a value of ``hybrid.schedule``.

    Raises UsageError for an unknown name, and as :func:`gpipe`.
    """
    if name not in _SCHEDULES:
        raise UsageError(f"hybrid.schedule is one of {', '.join(_SCHEDULES)}, got {name!r}.")
    return _SCHEDULES[name](stage, stages, microbatches)


def peak(name: str, stage: int, stages: int, microbatches: int) -> int:
    """Most micro-batches that ``stage`` keeps the activations of at a time. 1f1b: min(M, K - s); gpipe: M."""
    kept = most = 0
    for one in passes(name, stage, stages, microbatches):
        kept += 1 if isinstance(one, Forward) else -1
        most = max(most, kept)
    return most


def bubble(stages: int, microbatches: int) -> float:
    """The share of a step in which a stage has nothing to do, where all stages are equally long: (K-1) / (M+K-1)."""
    _check(0, stages, microbatches)
    return (stages - 1) / (microbatches + stages - 1)


def table(name: str, stages: int, microbatches: int) -> str:
    """The schedule drawn in text, one line for each stage, where every pass takes one column."""
    rows: list[list[str]] = [[] for _ in range(stages)]
    todo = [list(passes(name, stage, stages, microbatches)) for stage in range(stages)]
    done: list[set[Pass]] = [set() for _ in range(stages)]
    while any(todo):
        before = [set(finished) for finished in done]  # a pass may use what others had done when the column began
        for stage, mine in enumerate(todo):
            needed = source(mine[0], stage, stages) if mine else None
            ready = bool(mine) and (needed is None or mine[0] in before[needed])
            rows[stage].append(str(mine[0]) if ready else ".")
            if ready:
                done[stage].add(mine.pop(0))
    width = max(len(cell) for row in rows for cell in row)
    head = len(f"stage {stages}") + 2
    return "\n".join(f"stage {stage}".ljust(head) + " ".join(cell.ljust(width) for cell in row).rstrip()
                     for stage, row in enumerate(rows))


def source(one: Pass, stage: int, stages: int) -> int | None:
    """The stage that must have done the same pass before ``stage`` can: its neighbour, or None at the ends."""
    neighbour = stage - 1 if isinstance(one, Forward) else stage + 1
    return neighbour if 0 <= neighbour < stages else None


def _check(stage: int, stages: int, microbatches: int) -> None:
    if stages < 1:
        raise UsageError(f"hybrid.stages must be at least 1, got {stages}.")
    if microbatches < 1:
        raise UsageError(f"hybrid.microbatches must be at least 1, got {microbatches}.")
    if not 0 <= stage < stages:
        raise UsageError(f"A stage is 0 to {stages - 1} where there are {stages}, got {stage}.")
