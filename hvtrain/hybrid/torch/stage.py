"""One stage: forward and backward of a micro-batch through a part of the model, apart from who computes what when.

::

    crossing --take--> leaves --forward--> outputs --detach--> crossing          Kept: leaves and outputs
    gradients of leaves <------backward--- outputs, gradients of outputs
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, ContextManager, Mapping, Sequence

import torch

from hvtrain import probe
from hvtrain.errors import UserCodeError
from hvtrain.hybrid.torch.borders import Crossing, crossing, mapped, tensors
from hvtrain.hybrid.torch.lanes import lane
from hvtrain.hybrid.torch.links import spread
from hvtrain.hybrid.torch.parts import Part
from hvtrain.hybrid.torch.randomness import Randomness, Watch
from hvtrain.hybrid.torch.recomputation import Statistics, forgetting

Loss = Callable[[Any], torch.Tensor]
Context = Callable[[torch.device], ContextManager[Any]]

REPEATED = ("again in backward, as a checkpoint within a layer does that recomputes it (torch.utils.checkpoint): the stages "
            "could not repeat them. Leave the checkpoint out and set hybrid.recompute=true")


@dataclass
class Kept:
    """What a stage keeps of a micro-batch until its backward pass. ``outputs`` is None where they are to be recomputed."""

    values: Any
    named: Mapping[str, Any]
    leaves: list[torch.Tensor]
    outputs: list[torch.Tensor] | None
    statistics: list[torch.Tensor]


class Stage:
    """``part`` and how it is run.

    Args:
        statistics: buffers, of any part, that forward passes change.
        context: entered around forward passes, with the stage's device.
    """

    def __init__(self, part: Part, statistics: Sequence[torch.Tensor], context: Context):
        self.part, self.lane, self._context = part, lane(part.device), context
        self.loss_link = part.first + len(part.links)
        self.randomness = Randomness(self.lane)
        own = {id(buffer) for buffer in part.buffers()}
        self._statistics = Statistics([buffer for buffer in statistics if id(buffer) in own])
        self._in_place = False

    def links(self, last: bool) -> set[int]:
        """The numbers of its links; in the last stage also that of the loss, which may draw random numbers as well."""
        return set(range(self.part.first, self.loss_link + last))

    # Forward -------------------------------------------------------------------------------------------
    def forward(self, given: Crossing, named: Mapping[str, Any], microbatch: int, seed: int, *, keep: bool,
                loss: Loss | None = None) -> tuple[Crossing | None, Kept]:
        """One micro-batch, from what the stage before gives.

        Args:
            named: keyword arguments of the model, for the first stage.
            keep: whether backward comes without computing this again.
            loss: makes the loss of the model's output, in the last stage.
        """
        values, leaves = self._take(given)
        statistics = [] if keep else self._statistics.copy()
        if keep:
            outputs = self._compute(values, named, microbatch, seed, loss)
        else:
            with forgetting():
                outputs = self._compute(values, named, microbatch, seed, loss)
        kept = Kept(values, named, leaves, tensors(outputs) if keep else None, statistics)
        return (None if loss is not None else crossing(outputs, self.lane.signal())), kept

    def _take(self, given: Crossing) -> tuple[Any, list[torch.Tensor]]:
        followed = iter(given.followed)
        leaves: list[torch.Tensor] = []

        def leaf(tensor: torch.Tensor) -> torch.Tensor:
            taken = self.lane.take(tensor, given.signal)
            if next(followed):
                taken.requires_grad_()
            leaves.append(taken)
            return taken

        return mapped(given.values, leaf), leaves

    def _compute(self, values: Any, named: Mapping[str, Any], microbatch: int, seed: int, loss: Loss | None) -> Any:
        around = self.randomness.around(seed, microbatch)
        if self._in_place:  # what was kept must stay as it is, and a leaf may not be written to
            values, named = mapped((values, named), torch.Tensor.clone)
        with torch.enable_grad(), self._context(self.part.device):
            outputs = self.part(*spread(values), around=around if self.randomness.links else None, **named)
            probe.reached("forward")
            if loss is None:
                return outputs
            with around(self.loss_link):
                return loss(outputs)

    # Backward ------------------------------------------------------------------------------------------
    def recompute(self, kept: Kept, microbatch: int, seed: int) -> None:
        """Compute the outputs that were not kept."""
        with self._statistics.as_of(kept.statistics):
            kept.outputs = tensors(self._compute(kept.values, kept.named, microbatch, seed, None))

    def backward(self, kept: Kept, gradients: Crossing | None, tied: Sequence[tuple[torch.Tensor, Crossing]]) -> Crossing:
        """Add to the parameters' gradients; returns those of all tensors that the stage was given, None for none.

        Args:
            gradients: those of the outputs; None in the last stage, whose output is the loss.
            tied: parameters with the gradients that later stages have for them. They go in first, as they would in the
                unsplit model, whose later layers come first in backward.
        """
        assert kept.outputs is not None
        pairs = [(parameter, gradient, each.signal) for parameter, each in tied for gradient in each.values]
        if gradients is not None:
            pairs += [(output, gradient, gradients.signal) for output, gradient in zip(kept.outputs, gradients.values)]
        found = [(root, self.lane.take(gradient, signal)) for root, gradient, signal in pairs
                 if gradient is not None and root.requires_grad]
        roots, weights = [root for root, _ in found], [weight for _, weight in found]
        if gradients is None:
            roots, weights = [*roots, *kept.outputs], [*weights, *([None] * len(kept.outputs))]
        if roots:
            torch.autograd.backward(roots, weights)
        return Crossing([leaf.grad if leaf.is_leaf else None for leaf in kept.leaves], [], self.lane.signal())

    # Before training -----------------------------------------------------------------------------------
    def learn(self, given: Crossing, named: Mapping[str, Any], watch: Watch) -> Crossing:
        """Try a micro-batch, to find the links that draw random numbers and whether the inputs are written to.

        Nothing of it stays. Raises UserCodeError for what cannot be trained in stages.
        """
        everything = Statistics(list(self.part.buffers()))
        before = everything.copy()
        values, leaves = self._take(Crossing(given.values, [False] * len(given.followed), given.signal))
        versions = [leaf._version for leaf in tensors((values, named))]
        found = set(watch.found)
        try:
            with forgetting(), torch.enable_grad(), self._context(self.part.device):
                outputs = crossing(self.part(*spread(values), around=watch.around, **named), self.lane.signal())
            self._in_place = versions != [leaf._version for leaf in tensors((values, named))]
            if watch.found != found:
                self._try_backward(given, named, watch)
        finally:
            everything.put_back(before)
        return outputs

    def _try_backward(self, given: Crossing, named: Mapping[str, Any], watch: Watch) -> None:
        values, leaves = self._take(given)
        with torch.enable_grad(), self._context(self.part.device):
            outputs = self.part(*spread(mapped(values, torch.Tensor.clone)), around=watch.around, **named)
        roots = [output for output in tensors(outputs) if output.requires_grad]
        sources = [each for each in (*self.part.parameters(), *leaves) if each.requires_grad]
        watch.forbidden = REPEATED
        try:
            if roots:
                with watch:
                    torch.autograd.grad(roots, sources, [torch.ones_like(root) for root in roots], allow_unused=True)
        except RuntimeError as error:
            if "checkpoint" not in str(error):
                raise
            raise UserCodeError(f"a layer draws random numbers {REPEATED}") from None
        finally:
            watch.forbidden = None
