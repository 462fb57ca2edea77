"""Where a run stands: everything beside tensors that exact continuation needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Mapping

from hvtrain.data.sampler import Position
from hvtrain.errors import CheckpointDamaged


@dataclass
class Progress:
    """``step`` counts committed steps; ``position`` is where the next one reads.

    ``settled``: what follows the step (evaluation, saving) is done as well. ``flags`` are what the ranks agreed on
    along with the step: they decide about that. ``best`` is the best value of ``checkpoint.best`` so far;
    ``stale`` counts evaluations without an improvement of ``train.early_stopping.metric``, whose best is
    ``stopping_best``.
    """

    step: int = 0
    position: Position = field(default_factory=Position)
    settled: bool = True
    flags: tuple[float, ...] = ()
    best: float | None = None
    best_step: int | None = None
    stopping_best: float | None = None
    stale: int = 0
    evaluated: dict[str, float] = field(default_factory=dict)
    evaluated_step: int = -1
    ended: bool = False

    @property
    def epoch_end(self) -> bool:
        """Whether the last step was its epoch's last."""
        return self.step > 0 and self.position.cursor == 0

    @property
    def read_epoch(self) -> int:
        """The epoch that the last step has read."""
        return self.position.epoch - 1 if self.epoch_end else self.position.epoch

    def flag(self, number: int) -> bool:
        """Whether any rank raised flag ``number`` in the last step."""
        return number < len(self.flags) and self.flags[number] > 0

    def to_json(self) -> dict[str, Any]:
        return {"step": self.step, "epoch": self.position.epoch, "cursor": self.position.cursor,
                "settled": self.settled, "flags": list(self.flags),
                "best": self.best, "best_step": self.best_step, "stopping_best": self.stopping_best,
                "stale": self.stale, "evaluated": self.evaluated, "evaluated_step": self.evaluated_step,
                "ended": self.ended}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Progress:
        """The inverse of :meth:`to_json`; raises CheckpointDamaged where something is missing.

        Checkpoints of 0.1 have no ``settled`` and no ``flags``: they were written when everything was done.
        """
        try:
            return cls(step=data["step"], position=Position(data["epoch"], data["cursor"]),
                       settled=data.get("settled", True), flags=tuple(data.get("flags", ())), best=data["best"],
                       best_step=data["best_step"], stopping_best=data["stopping_best"], stale=data["stale"],
                       evaluated=dict(data["evaluated"]), evaluated_step=data["evaluated_step"],
                       ended=data["ended"])
        except KeyError as error:
            raise CheckpointDamaged(f"the checkpoint's state lacks {error}") from None
