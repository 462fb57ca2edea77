"""What a fault has cost, from the lines that workers wrote of their committed steps. Pure.

::

    victim     5 6 7 X
    others     5 6 7 8 . . . . . . . 9 10 11      8: the victim had given its share and died before it committed
    its heir                         9 10 11
                     |<- next step ->|            9: the first step that all members of its world have committed
    shrunk     5 6 7 8 . . 9 10 11 . . 12 13      9: by all three of a world of three; 12: by four of four
    its heir                           12 13
                     |<-->|                       next step
                     |<--------------->|          full strength

A line says how large the world was that the step was done in. A step that fewer workers have committed than their
world had members was finished by what the victim had left behind; it says nothing of recovery, and is not counted.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any, Collection, Iterable, Sequence


@dataclass(frozen=True)
class Line:
    """Worker ``pid`` committed ``step`` as ``rank`` of a world of ``size`` at ``time`` (seconds since 1970)."""

    pid: int
    rank: int
    size: int
    step: int
    time: float


@dataclass(frozen=True)
class Step:
    """A step that all members of a world have committed: ``first`` one of them, ``time`` the last. ``pids`` by rank."""

    number: int
    size: int
    first: float
    time: float
    pids: tuple[int, ...]


@dataclass(frozen=True)
class Outage:
    """What one fault cost. Seconds are counted from the fault; None: it did not come to that while we waited.

    ``lost`` are steps that somebody had committed and that were done again.
    """

    time: float
    ranks: tuple[int, ...]
    next_seconds: float | None
    full_seconds: float | None
    lost: int | None
    size_after: int | None


def complete(lines: Iterable[Line], *, after: float = -math.inf, without: Collection[int] = ()) -> list[Step]:
    """Steps that every rank of their world has committed after ``after``, none of them a pid in ``without``.

    In order of time. Where a rank has committed a step more than once, its last line counts.
    """
    groups: dict[tuple[int, int], dict[int, Line]] = {}
    for line in lines:
        if line.time > after and line.pid not in without:
            members = groups.setdefault((line.step, line.size), {})
            if line.rank not in members or members[line.rank].time < line.time:
                members[line.rank] = line
    steps = []
    for (number, size), members in groups.items():
        pids = tuple(members[rank].pid for rank in sorted(members))
        if sorted(members) == list(range(size)) and len(set(pids)) == size:
            times = [line.time for line in members.values()]
            steps.append(Step(number, size, min(times), max(times), pids))
    return sorted(steps, key=lambda step: (step.time, step.number))


def outage(lines: Sequence[Line], *, time: float, victims: dict[int, int], strength: int) -> Outage:
    """What the fault at ``time`` has cost so far.

    ``victims`` are pid -> rank; ``lines`` may hold any lines of the job up to now, but none after a later fault.
    Full strength is a world of ``strength``.
    """
    ranks = tuple(sorted(victims.values()))
    steps = complete(lines, after=time, without=victims)
    if not steps:
        return Outage(time, ranks, None, None, None, None)
    first = steps[0]
    before = max((line.step for line in lines if line.time < first.first), default=0)
    full = next((step.time - time for step in steps if step.size == strength), None)
    return Outage(time, ranks, first.time - time, full, max(0, before + 1 - first.number), first.size)


def step_milliseconds(steps: Sequence[Step], pauses: Sequence[tuple[float, float]]) -> float | None:
    """Median time from one step to the next, leaving out what touches one of ``pauses`` (from, to); None of nothing."""
    gaps = [1000 * (b.time - a.time) for a, b in zip(steps, steps[1:])
            if b.number == a.number + 1 and not any(start <= b.time and a.time <= end for start, end in pauses)]
    return statistics.median(gaps) if gaps else None


def summary(values: Sequence[float | None]) -> dict[str, Any]:
    """Median, 95th percentile (nearest rank), smallest and largest; None counts as larger than any number.

    Where a figure comes out as None, it is "never".
    """
    ordered = sorted(math.inf if value is None else value for value in values)
    if not ordered:
        return {"count": 0, "never": 0, "median": None, "p95": None, "min": None, "max": None}
    found = {"median": statistics.median(ordered), "p95": ordered[math.ceil(0.95 * len(ordered)) - 1],
             "min": ordered[0], "max": ordered[-1]}
    return {"count": len(ordered), "never": sum(value is None for value in values),
            **{name: value if math.isfinite(value) else None for name, value in found.items()}}
