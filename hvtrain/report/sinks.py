"""Where measurements go: one small class per kind of sink."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import IO, Any, Mapping, Protocol

from hvtrain.errors import EnvironmentNotReady


class Sink(Protocol):
    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Take the measured ``values`` of ``kind`` ("train" or "eval") after ``step`` steps."""

    def close(self) -> None:
        """Nothing more will come."""


class JsonLines:
    """One JSON object a line, flushed at once: a crash loses nothing that was written."""

    def __init__(self, path: Path):
        self._path = path
        self._file: IO[str] | None = None

    def append(self, record: Mapping[str, Any]) -> None:
        if self._file is None:
            self._file = open(self._path, "a", buffering=1)
        self._file.write(json.dumps({key: _plain(value) for key, value in record.items()}) + "\n")

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        place = {"step": step, "kind": kind}
        self.append({**place, **values, **place})  # a metric that is called "step" must not take its place

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class Tensorboard:
    """TensorBoard scalars, tags ``train/loss``, ``eval/accuracy`` and so on. Needs the extra "tensorboard"."""

    def __init__(self, directory: Path):
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise EnvironmentNotReady("log.sinks has tensorboard, for which tensorboardX is missing.",
                                      "pip install tensorboardX") from None
        self._writer = SummaryWriter(str(directory))

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, (int, float)) and name not in ("epoch", "time"):
                self._writer.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        self._writer.close()


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity; they become strings, which other readers can tell from numbers."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
