"""Throughput between two lines of the log."""

from __future__ import annotations

import time


class Meter:
    """Adds up samples and seconds; ``read`` gives rates since the last reading."""

    def __init__(self) -> None:
        self._samples = 0
        self._waiting = 0.0
        self._outside = 0.0
        self._since = time.perf_counter()

    def add(self, samples: int, waiting: float) -> None:
        """A step over ``samples`` that waited ``waiting`` seconds for communication."""
        self._samples += samples
        self._waiting += waiting

    def leave_out(self, seconds: float) -> None:
        """Time that was no training (an evaluation, say)."""
        self._outside += seconds

    def read(self) -> dict[str, float]:
        """``samples_per_s`` over all ranks, and ``comm_share``, the share of time spent in communication."""
        now = time.perf_counter()
        seconds = max(now - self._since - self._outside, 1e-9)
        result = {"samples_per_s": round(self._samples / seconds, 2), "comm_share": round(self._waiting / seconds, 4)}
        self._samples, self._waiting, self._outside, self._since = 0, 0.0, 0.0, now
        return result
