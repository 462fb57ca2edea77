"""Which checkpoints to keep: values and pure functions."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Iterable, Protocol, Sequence, TypeVar

from hvtrain.errors import UsageError

_LOWER_IS_BETTER = ("loss", "error", "perplexity", "mae", "mse", "rmse", "wer", "cer")
_HIGHER_IS_BETTER = ("accuracy", "acc", "precision", "recall", "f1", "auc", "score", "iou", "map", "bleu", "r2")


class Described(Protocol):
    """What a policy looks at; a Manifest is one."""

    @property
    def step(self) -> int: ...
    @property
    def epoch(self) -> int: ...
    @property
    def metrics(self) -> dict[str, float]: ...


class Interval(Protocol):
    """A count of steps or epochs; ``hvtrain.config.units.Every`` is one."""

    @property
    def count(self) -> float: ...
    @property
    def unit(self) -> str: ...


D = TypeVar("D", bound=Described)


def resolve_mode(metric: str, mode: str = "auto") -> str:
    """"min" or "max" for a metric. "auto" knows common names, also as the end of a longer one (val_loss).

    Raises UsageError for another mode, or where "auto" does not know: to guess could keep the worst checkpoint.
    """
    if mode == "auto":
        last = re.split(r"[^a-z0-9]+", metric.lower())[-1]
        if metric.lower().endswith(_LOWER_IS_BETTER[:3]) or last in _LOWER_IS_BETTER:
            return "min"
        if metric.lower().endswith("accuracy") or last in _HIGHER_IS_BETTER:
            return "max"
        raise UsageError(f"Is {metric!r} better when higher or when lower? Say so with mode max or min "
                         "(checkpoint.best_mode, train.early_stopping.mode).")
    if mode not in ("min", "max"):
        raise UsageError(f"A metric's mode must be auto, min or max; got {mode!r}.")
    return mode


def better(new: float, old: float | None, mode: str) -> bool:
    """True if ``new`` is strictly better than ``old``; NaN never is, and anything else beats None and NaN.

    ``mode`` is "min" or "max".
    """
    if mode not in ("min", "max"):
        raise UsageError(f"A comparison needs mode min or max (see resolve_mode); got {mode!r}.")
    if math.isnan(new):
        return False
    if old is None or math.isnan(old):
        return True
    return new < old if mode == "min" else new > old


def best(checkpoints: Iterable[D], metric: str, mode: str = "auto") -> D | None:
    """The checkpoint with the best ``metric``, the earliest of equals; None if none has a number for it."""
    mode = resolve_mode(metric, mode)
    winner: D | None = None
    for candidate in sorted(checkpoints, key=lambda item: item.step):
        value = candidate.metrics.get(metric, math.nan)
        if better(value, winner.metrics[metric] if winner is not None else None, mode):
            winner = candidate
    return winner


@dataclass(frozen=True)
class Retention:
    """Keep the newest ``keep``, the best by ``best_metric``, and one for every ``keep_every``.

    ``keep_every`` is a number of steps, or has ``count`` and ``unit`` ("step" or "epoch"); the first
    checkpoint at or after each multiple is kept, so it need not divide the interval of writing. Raises
    UsageError for impossible values.
    """

    keep: int = 3
    keep_every: int | Interval | None = None
    best_metric: str | None = None
    best_mode: str = "auto"

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise UsageError(f"At least one checkpoint has to be kept; got keep = {self.keep}.")
        count, unit = self._interval()
        if count <= 0 or unit not in ("step", "epoch"):
            raise UsageError("keep_every must be a positive number of steps or epochs; "
                             f"got {self.keep_every}.")
        if self.best_metric is not None:
            resolve_mode(self.best_metric, self.best_mode)

    def doomed(self, sound: Iterable[D]) -> list[D]:
        """Of the given sound checkpoints those to delete, oldest first; never the newest, never the best."""
        ordered = sorted(sound, key=lambda item: item.step)
        kept = self._kept_steps(ordered)
        return [item for item in ordered if item.step not in kept]

    def _kept_steps(self, ordered: Sequence[Described]) -> set[int]:
        kept = {item.step for item in ordered[-self.keep:]}
        if self.best_metric is not None:
            winner = best(ordered, self.best_metric, self.best_mode)
            if winner is not None:
                kept.add(winner.step)
        if self.keep_every is not None:
            count, unit = self._interval()
            seen = {0}  # before the first multiple there is nothing to keep
            for item in ordered:
                multiple = int((item.step if unit == "step" else item.epoch) // count)
                if multiple not in seen:
                    seen.add(multiple)
                    kept.add(item.step)
        return kept

    def _interval(self) -> tuple[float, str]:
        if self.keep_every is None:
            return 1, "step"
        if isinstance(self.keep_every, int):
            return self.keep_every, "step"
        return self.keep_every.count, self.keep_every.unit
