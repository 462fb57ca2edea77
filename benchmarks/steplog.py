"""What every worker of every contestant does after a committed step: write one line, then sleep out the period."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from outages import Line

FOLDER = "BENCH_STEPS"
"""Names the folder with one file of lines per worker process."""

PERIOD = "BENCH_PERIOD"
"""Seconds that a step takes at least; the rest of it is slept."""


class StepLog:
    """A worker's own file of committed steps, made when the first one is written.

    ::

        | forward, backward, exchange, update | commit | line |   sleep   | forward ...
        |<------------------------- period ------------------------------>|

    A line is one ``write`` to a file of this process alone, so it is there whole or not at all, whatever kills the
    process. The sleep stands for the computation of a larger model: nothing is in flight, nobody is waited for.
    """

    def __init__(self, folder: Path, period: float):
        self._folder, self._period = folder, period
        self._file = -1
        self._woke: float | None = None

    @classmethod
    def from_environment(cls) -> StepLog:
        return cls(Path(os.environ[FOLDER]), float(os.environ[PERIOD]))

    def done(self, step: int, rank: int, size: int) -> None:
        """``step`` (counted from 1) is committed on rank ``rank`` of ``size``."""
        if self._file < 0:
            self._file = os.open(self._folder / f"{os.getpid()}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        line = {"pid": os.getpid(), "rank": rank, "size": size, "step": step, "time": time.time()}
        os.write(self._file, json.dumps(line).encode() + b"\n")
        now = time.monotonic()
        if self._woke is not None:  # a process's first step began nowhere
            time.sleep(max(0.0, self._period - (now - self._woke)))
        self._woke = time.monotonic()


class StepReader:
    """Reads the lines of all workers as they come."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._read: dict[Path, int] = {}

    def new(self) -> list[Line]:
        """Lines that were not there at the last call, in order of time. A line that is being written waits."""
        found = []
        for path in self._folder.glob("*.jsonl"):
            with open(path, "rb") as file:
                file.seek(self._read.get(path, 0))
                whole, newline, _ = file.read().rpartition(b"\n")
            self._read[path] = self._read.get(path, 0) + len(whole) + len(newline)
            found += [line(json.loads(text)) for text in whole.splitlines()]
        return sorted(found, key=lambda each: each.time)


def line(value: dict[str, Any]) -> Line:
    return Line(value["pid"], value["rank"], value["size"], value["step"], value["time"])
