"""Throughput between two lines of the log."""

from __future__ import annotations

import time


class Meter:
    """Adds up samples and seconds; ``read`` gives rates since the last reading."""

    def __init__(self) -> None:
        self._samples = 0
        self._waiting = self._hidden = 0.0
        self._outside = 0.0
        self._since = time.perf_counter()

    def add(self, samples: int, waiting: float, hidden: float) -> None:
        """A step over ``samples`` that waited ``waiting`` seconds for communication, ``hidden`` seconds of which more
        went on beside the computation."""
        self._samples += samples
        self._waiting += waiting
        self._hidden += hidden

    def leave_out(self, seconds: float) -> None:
        """Time that was no training (an evaluation, say)."""
        self._outside += seconds

    def read(self) -> dict[str, float]:
        """``samples_per_s`` over all ranks, and shares of time in which there was communication.

        ``comm_share``: this rank waited for it; ``comm_hidden``: it went on behind the computation.
        """
        now = time.perf_counter()
        seconds = max(now - self._since - self._outside, 1e-9)
        result = {"samples_per_s": round(self._samples / seconds, 2), "comm_share": round(self._waiting / seconds, 4),
                  "comm_hidden": round(self._hidden / seconds, 4)}
        self._samples, self._waiting, self._hidden, self._outside, self._since = 0, 0.0, 0.0, 0.0, now
        return result
