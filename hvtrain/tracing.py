"""Marks of what a worker does within a step: how ``log.timeline`` sees into it.

Nobody records in a normal run, and then a mark is one comparison. Times are seconds of ``time.monotonic``, which is
the engine's clock as well.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import Any, ContextManager, NamedTuple

COMPUTE, WAIT, QUEUE = "compute", "wait", "queue"
"""What marks are of: computing; waiting for reductions; the moment in which a bucket is given to the engine."""

STAGE = "stage"
"""What each stage of a model in stages computes: ``stage 0`` and so on."""


class Mark(NamedTuple):
    """``number`` tells the micro-batch or the bucket, None where there is only one of the kind."""

    row: str
    name: str
    number: int | None
    begin: float
    end: float


class _Span:
    __slots__ = ("_marks", "_what", "_begin")

    def __init__(self, marks: list[Mark], *what: Any):
        self._marks, self._what = marks, what

    def __enter__(self) -> None:
        self._begin = time.monotonic()

    def __exit__(self, *error: Any) -> None:
        self._marks.append(Mark(*self._what, self._begin, time.monotonic()))


_OFF = nullcontext()
_marks: list[Mark] | None = None


def span(row: str, name: str, number: int | None = None) -> ContextManager[None]:
    """Within this context the worker does ``name``."""
    return _OFF if _marks is None else _Span(_marks, row, name, number)


def queued(name: str, number: int) -> None:
    """The reduction of bucket ``number`` is asked for now, under ``name``."""
    if _marks is not None:
        now = time.monotonic()
        _marks.append(Mark(QUEUE, name, number, now, now))


def listen(marks: list[Mark] | None) -> None:
    """Have all marks from now on appended to ``marks``, each when it is over; None ends that."""
    global _marks
    _marks = marks


def wall_offset() -> float:
    """Seconds from ``time.monotonic()`` to ``time.time()``, by the closest of several pairs of readings."""
    def reading() -> tuple[float, float]:
        before, wall, after = time.monotonic(), time.time(), time.monotonic()
        return after - before, wall - (before + after) / 2

    return min(reading() for _ in range(9))[1]
