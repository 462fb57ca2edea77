"""What the loop needs of a framework: the protocol that every adapter fulfils.

A training step is a transaction. ``gradients`` computes and reduces but changes no parameter; ``apply`` changes
parameters and cannot fail for a reason that lies in another rank. So a rank that loses a peer stands at the
state of its last ``apply``, and all ranks differ by one step at most.

::

    gradients(batches) --RoundBroken--> nothing has changed (statistics are put back)
           |
        apply(step, factor) --> committed

:mod:`hvtrain.adapters.reference` does all of it in plain NumPy, to be read; ``tests/conformance`` holds every adapter
to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Mapping, Protocol, Sequence

from hvtrain.checkpoint.blob import Blob
from hvtrain.engine.world import World


@dataclass(frozen=True)
class Reduced:
    """What all ranks know after the reduction: the mean loss over the global batch, and the summed flags.

    ``communication`` is the time this rank waited for reductions, ``hidden`` the time that they were under way behind
    backward, seconds; ``overflow`` says that the gradients are too large for half precision, so that
    :meth:`Adapter.apply` will leave the step out.
    """

    loss: float
    flags: tuple[float, ...]
    communication: float
    hidden: float = 0.0
    overflow: bool = False


class Adapter(Protocol):
    model: Any
    optimizer: Any

    def build(self) -> None:
        """Build the model, the optimizer and the buckets, from the run's seed."""

    def warm_up(self, example: Callable[[], tuple[Any, int]]) -> None:
        """Do once what is slow, such as tracing; nothing of it remains.

        Called after :meth:`build` and before anything else, when no other rank waits for this one yet. ``example``
        gives a micro-batch of training data and the number of its samples.
        """

    def join(self, world: World) -> None:
        """Use ``world`` for everything that follows."""

    def seed(self, step: int) -> None:
        """Seed the framework's random numbers for ``step`` on this rank: from (seed, step, rank)."""

    def gradients(self, batches: Sequence[Any], counts: Sequence[int], total: int,
                  flags: Sequence[float]) -> Reduced:
        """Forward, backward and reduce this rank's share of a global batch.

        Args:
            batches: this rank's micro-batches; none if it has no samples in this step.
            counts: the number of samples in each.
            total: samples of the whole global batch; every gradient is divided by it.
            flags: small numbers to be summed over the ranks along with the gradients.
        """

    def apply(self, step: int, factor: float) -> Mapping[str, float]:
        """Take optimizer step number ``step`` (from 0) with every base learning rate times ``factor``.

        After an overflow of half precision the step counts, but changes no parameter. Returns ``lr`` and what else was
        measured on the way.
        """

    def evaluate(self, batches: Any, ema: bool) -> Mapping[str, float]:
        """Means over all samples of all ranks; ``batches`` yields (batch, count) of this rank's share."""

    def finite(self) -> bool:
        """Whether all trainable weights are finite numbers."""

    def parameter_count(self) -> int:
        """Number of trainable scalars."""

    def export(self, copy: bool = True) -> dict[str, dict[str, Blob]]:
        """Everything that determines the next step: tensors by group ("model", "optimizer", "ema").

        Without ``copy`` they may share memory with the model: good until training goes on.
        """

    def scalars(self) -> dict[str, Any]:
        """JSON-able rest of the optimizer's state."""

    def restore(self, groups: Mapping[str, Mapping[str, Blob]], scalars: Mapping[str, Any]) -> None:
        """Take back what ``export`` and ``scalars`` gave. Raises CheckpointDamaged if it does not fit."""

    def total(self, values: Sequence[float], name: str) -> list[float]:
        """Each of ``values`` summed over the ranks, in double precision."""

    def share(self, value: Any, root: int, name: str) -> Any:
        """Rank ``root``'s JSON-able ``value``, on every rank."""

    def share_state(self, root: int) -> int:
        """Overwrite this rank's model, optimizer and averages by those of rank ``root``; bytes received."""
