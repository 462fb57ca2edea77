"""Where a run stands: everything beside tensors that exact continuation needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Mapping

from hvtrain.data.sampler import Position
from hvtrain.errors import CheckpointDamaged


@dataclass
class Progress:
    """``step`` counts committed steps; ``position`` is where the next one reads.

    ``best`` is the best value of ``checkpoint.best`` so far; ``stale`` counts evaluations without an
    improvement of ``train.early_stopping.metric``, whose best is ``stopping_best``.
    """

    step: int = 0
    position: Position = field(default_factory=Position)
    best: float | None = None
    best_step: int | None = None
    stopping_best: float | None = None
    stale: int = 0
    evaluated: dict[str, float] = field(default_factory=dict)
    evaluated_step: int = -1
    ended: bool = False

    def to_json(self) -> dict[str, Any]:
        return {"step": self.step, "epoch": self.position.epoch, "cursor": self.position.cursor,
                "best": self.best, "best_step": self.best_step, "stopping_best": self.stopping_best,
                "stale": self.stale, "evaluated": self.evaluated, "evaluated_step": self.evaluated_step,
                "ended": self.ended}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Progress:
        """The inverse of :meth:`to_json`; raises CheckpointDamaged where something is missing."""
        try:
            return cls(step=data["step"], position=Position(data["epoch"], data["cursor"]), best=data["best"],
                       best_step=data["best_step"], stopping_best=data["stopping_best"], stale=data["stale"],
                       evaluated=dict(data["evaluated"]), evaluated_step=data["evaluated_step"],
                       ended=data["ended"])
        except KeyError as error:
            raise CheckpointDamaged(f"the checkpoint's state lacks {error}") from None
