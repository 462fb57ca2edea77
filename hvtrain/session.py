"""What the training loop needs from outside: a place among the ranks, and somebody to tell."""

from __future__ import annotations

from typing import Any, Mapping, Protocol

from hvtrain.engine.world import SoloWorld, World


class Session(Protocol):
    """A worker's tie to the rest of the job. The loop knows no sockets and no processes beside this."""

    def enter(self, outline: Mapping[str, Any]) -> World:
        """Say that model and data are ready (``outline`` describes the run), and wait for a world."""

    def at(self, step: int) -> None:
        """``step`` steps are complete; for signs of life."""

    def stop_signal(self) -> int:
        """The signal by which a stop was asked for, 0 if none was."""

    def report(self, kind: str, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Measured values (``kind`` "train" or "eval"), for metrics.jsonl and the console."""

    def event(self, name: str, step: int, **values: Any) -> None:
        """Something that happened, for events.jsonl."""

    def salvage(self) -> bool:
        """After a broken round: whether it falls to this worker to save the last committed step."""


class QuietSession:
    """A session of one process that tells nobody; also the base of those that tell somebody."""

    def enter(self, outline: Mapping[str, Any]) -> World:
        return SoloWorld()

    def at(self, step: int) -> None:
        pass

    def stop_signal(self) -> int:
        return 0

    def report(self, kind: str, step: int, epoch: int, values: Mapping[str, float]) -> None:
        pass

    def event(self, name: str, step: int, **values: Any) -> None:
        pass

    def salvage(self) -> bool:
        return True
