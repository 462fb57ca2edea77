"""Hooks into training: what a user may do at the end of a step, of an evaluation, at a commit, a resize."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Mapping


@dataclass
class Moment:
    """Where training stands when a callback is called.

    ``metrics`` holds what was just measured: ``loss``, ``lr``, ``grad_norm`` after a step; the evaluation's
    results after an evaluation. Set ``stop`` on any rank to end training on all ranks: after an evaluation at
    once; after a step with the following one, along with whose gradients the ranks tell each other.
    """

    step: int
    epoch: int
    rank: int
    size: int
    model: Any
    optimizer: Any
    metrics: Mapping[str, float] = field(default_factory=dict)
    stop: bool = False


class Callback:
    """Base class; override what you need. Callbacks run on every rank, in the order they were given.

    An exception in a callback ends the job with exit code 1 and its traceback.
    """

    name: str = ""
    """Key of this callback's state in checkpoints; the class name if empty."""

    def on_start(self, moment: Moment) -> None:
        """Called once, after the state has been restored and before the first step."""

    def on_step_begin(self, moment: Moment) -> None:
        """Called before each step; once more before the same one if a lost worker broke it off."""

    def on_step_end(self, moment: Moment) -> None:
        """Called after each optimizer step."""

    def on_evaluation_end(self, moment: Moment) -> None:
        """Called after each evaluation, with its metrics: equal on every rank."""

    def on_commit(self, moment: Moment) -> None:
        """Called when a step has become final on this rank: it will never be taken back for a lost peer."""

    def on_resize(self, moment: Moment, old_size: int) -> None:
        """Called when the number of workers has changed, also between a checkpoint and its resumption."""

    def on_exception(self, moment: Moment, error: BaseException) -> None:
        """Called when training ends by an error, before it is reported."""

    def on_end(self, moment: Moment) -> None:
        """Called after the last step."""

    def state(self) -> dict[str, Any]:
        """JSON-able state that belongs into checkpoints."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state` gave."""
