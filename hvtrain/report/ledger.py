"""The ledger: which samples every rank has used in every step, and the check that each was used exactly once.

Every worker appends to a file of its own, RUN/ledger/WORKER.jsonl, one write per line::

    {"kind": "sampler", "length": 4000, "global_batch": 64, "seed": 0, ...}             once, at its beginning
    {"kind": "used", "step": 12, "round": 1, "rank": 0, "size": 4, ..., "indices": []}  before the reduction of step 12
    {"kind": "committed", "step": 12, "round": 1, "time": 1700000000.25}                after step 12

A step that a broken round has left unfinished is used again by a later round, and one that was committed and then lost
with all holders of the state is committed again. What counts is the latest round that committed it::

    step 11   round 1 committed
    step 12   round 1 used ........ broken   round 2 committed     <- the samples of round 2 are the step's
    step 13                                  round 2 committed     round 3 committed (repeated)   <- round 3
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Iterable, Sequence

import numpy as np

from hvtrain.data.sampler import GlobalSampler


class Ledger:
    """One worker's file. ``start`` counts the starts of the run: a resumed job numbers its rounds from 1 again."""

    def __init__(self, path: str | os.PathLike[str], *, start: int = 1):
        self._start = start
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)

    def sampler(self, sampler: GlobalSampler, *, weighted: bool = False) -> None:
        """Say what the samples are drawn by, so that the ledger can be checked without the job."""
        self._append({"kind": "sampler", "length": sampler.length, "global_batch": sampler.global_batch,
                      "seed": sampler.seed, "shuffle": sampler.shuffle, "drop_last": sampler.drop_last,
                      "weighted": weighted})

    def used(self, step: int, round: int, rank: int, size: int, epoch: int, cursor: int,
             indices: Sequence[int] | np.ndarray, *, total: int | None = None) -> None:
        """``rank`` of ``size`` is about to reduce ``step`` (from 1), which begins at ``epoch``, ``cursor``.

        ``total`` is the size of the global batch; it is needed only where it is not the sampler's.
        """
        record = {"kind": "used", "step": step, "round": round, "start": self._start, "rank": rank, "size": size,
                  "epoch": epoch, "cursor": cursor, "indices": np.asarray(indices, dtype=np.int64).tolist()}
        self._append(record if total is None else {**record, "total": total})

    def committed(self, step: int, round: int) -> None:
        """``step`` is complete for this rank."""
        self._append({"kind": "committed", "step": step, "round": round, "start": self._start, "time": time.time()})

    def close(self) -> None:
        os.close(self._file)

    def _append(self, record: dict[str, Any]) -> None:
        data = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        while data:  # the kernel may take less than all; what it has taken survives this process
            data = data[os.write(self._file, data):]


@dataclass(frozen=True, eq=False)
class Used:
    """A line ``used``; ``attempt`` is (start, round)."""

    step: int
    attempt: tuple[int, int]
    rank: int
    size: int
    epoch: int
    cursor: int
    indices: np.ndarray
    total: int | None = None


@dataclass(frozen=True)
class Committed:
    """A line ``committed``; ``time`` in seconds since 1970."""

    step: int
    attempt: tuple[int, int]
    time: float


@dataclass
class Records:
    """What all files of a ledger say. ``torn`` counts lines that are cut short, which a killed worker may leave."""

    used: list[Used] = field(default_factory=list)
    committed: list[Committed] = field(default_factory=list)
    sampler: dict[str, Any] | None = None
    torn: int = 0


def directory(run_dir: str | os.PathLike[str]) -> Path:
    """Where a run's ledger lies."""
    return Path(run_dir) / "ledger"


def read(path: str | os.PathLike[str]) -> Records:
    """All files of the ledger in the directory ``path``; empty where there is none."""
    return parse(line for file in sorted(Path(path).glob("*.jsonl")) for line in _lines(file))


def parse(lines: Iterable[str]) -> Records:
    """Records from lines; those that are no whole record are counted and left out."""
    records = Records()
    for line in lines:
        try:
            _take(records, json.loads(line))
        except (ValueError, KeyError, TypeError, OverflowError):
            records.torn += 1
    return records


def _take(records: Records, line: dict[str, Any]) -> None:
    kind = line["kind"]
    if kind == "sampler":
        records.sampler = line
        return
    step, attempt = int(line["step"]), (int(line["start"]), int(line["round"]))
    if kind == "committed":
        records.committed.append(Committed(step, attempt, float(line["time"])))
    elif kind == "used":
        indices = np.array(line["indices"], dtype=np.int64)
        records.used.append(Used(step, attempt, int(line["rank"]), int(line["size"]), int(line["epoch"]),
                                 int(line["cursor"]), indices, line.get("total")))


def _lines(path: Path) -> Iterable[str]:
    with open(path, encoding="utf-8", errors="replace") as file:
        yield from file
