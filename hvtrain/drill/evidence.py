"""What a run has left in its directory, read for a drill."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hvtrain.chaos.registry import Claim, fired
from hvtrain.report import ledger
from hvtrain.report.rundir import RunDirectory


@dataclass(frozen=True)
class Evidence:
    """One run: its exit ``code``, the ``seconds`` it took, and its records. ``reason`` is why it ended."""

    code: int
    seconds: float
    reason: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    records: ledger.Records = field(default_factory=ledger.Records)


def gather(run_dir: Path, code: int, seconds: float) -> Evidence:
    """The evidence of a run that has ended; what is missing is left empty."""
    directory = RunDirectory(run_dir)
    return Evidence(code=code, seconds=seconds, reason=_reason(directory.status), events=_objects(directory.events),
                    claims=fired(run_dir), records=ledger.read(ledger.directory(run_dir)))


def _reason(path: Path) -> str:
    try:
        return str(json.loads(path.read_text()).get("reason", ""))
    except (OSError, ValueError):
        return ""


def _objects(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of JSON objects; a line cut short is left out."""
    result = []
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            result.append(json.loads(line))
        except ValueError:
            continue
    return [entry for entry in result if isinstance(entry, dict)]
