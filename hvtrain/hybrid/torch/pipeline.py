"""Micro-batches through the stages of a model, one thread for each stage.

::

    stage 0   F0 F1 -- B0 F2 -- B1 ...      lines between neighbours: outputs down, their gradients up;
                 \\    /                     from each tied parameter's alias to its owner: the alias's gradient
    stage 1      F0 B0 F1 B1 ...

What each stage does comes from :mod:`hvtrain.hybrid.schedule`. Backward takes the micro-batches in one order in all
schedules, and each stage alone adds to its parameters' gradients: so they have the same bits for any number of stages and
either schedule, with the same micro-batches and as many threads for each operation.
"""

from __future__ import annotations

import queue
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Callable, Mapping, Sequence

import torch

from hvtrain import tracing
from hvtrain.hybrid import schedule as schedules
from hvtrain.hybrid.schedule import Backward, Forward, Pass
from hvtrain.hybrid.torch.borders import Crossing, crossing, mapped
from hvtrain.hybrid.torch.links import spread
from hvtrain.hybrid.torch.parts import Part
from hvtrain.hybrid.torch.randomness import Watch, check_generators, check_untouched
from hvtrain.hybrid.torch.stage import Context, Kept, Loss, Stage
from hvtrain.hybrid.workers import Crew, Effort


@dataclass(frozen=True)
class Microbatch:
    """The model's arguments, on the first stage's device, and what makes the loss of its output: a scalar, divided by
    whatever it is to be divided by."""

    inputs: tuple[Any, ...]
    loss: Loss
    named: Mapping[str, Any] = field(default_factory=dict)


class Pipeline:
    """The parts of a model, trained together.

    Args:
        parts: of the model, in order, each with its ties to earlier ones.
        schedule: a value of ``hybrid.schedule``.
        recompute: keep only the inputs of a stage, and compute its forward pass again for backward.
        statistics: buffers that forward passes change.
        context: makes the context around forward passes, from the stage's device.
    """

    def __init__(self, parts: Sequence[Part], *, schedule: str = "1f1b", recompute: bool = False,
                 statistics: Sequence[torch.Tensor] = (), context: Context = lambda device: nullcontext()):
        self._parts, self._schedule, self._recompute = list(parts), schedule, recompute
        self._context = context
        self._stages = [Stage(part, statistics, context) for part in parts]
        owners = {id(parameter): stage for stage, part in reversed([*enumerate(parts)]) for parameter in part.parameters()}
        # The latest alias first, as in the unsplit model's backward pass.
        self._ties = [(owners[id(tie.owner)], stage, tie) for stage, part in reversed([*enumerate(parts)])
                      for tie in part.ties if tie.owner.requires_grad]
        self._crew = Crew(len(parts))
        self._learned = False

    def learn(self, example: Microbatch) -> None:
        """Try the stages one after another on ``example``; to be done before the first step. Nothing of it stays.

        Raises UserCodeError for what cannot be trained in stages, UsageError for devices that stages cannot share, and
        whatever the model raises.
        """
        before = torch.default_generator.get_state()
        watch = Watch()
        try:
            value, named = crossing(example.inputs, strict=False), example.named
            for stage in self._stages:
                with stage.lane.entered():
                    value, named = stage.learn(value, named, watch), {}
            last = self._stages[-1]
            with torch.no_grad(), last.lane.entered(), self._context(last.part.device), watch.around(last.loss_link):
                example.loss(value.values)
        finally:
            torch.default_generator.set_state(before)
        for stage in self._stages:
            stage.randomness.links = frozenset(watch.found & stage.links(last=stage is last))
        check_generators([stage.part.device for stage in self._stages if stage.randomness.links])
        self._learned = True

    def run(self, microbatches: Sequence[Microbatch], *, seed: int = 0, on_last: Callable[[int], None] = lambda stage: None,
            on_done: Callable[[], None] = lambda: None) -> None:
        """Forward and backward of all ``microbatches``; gradients are added to what the parameters have.

        Args:
            seed: of the random numbers of this step.
            on_last: called by each stage's thread, with its number, before its last backward pass.
            on_done: called, in another thread, whenever a micro-batch is done with.

        Raises whatever a stage has raised first, when all of them have stopped.
        """
        if not microbatches:
            return
        assert self._learned
        for *_, tie in self._ties:
            tie.alias.grad = None
        before = torch.default_generator.get_state()
        effort = Effort()
        count = len(self._stages)
        down = [effort.line() for _ in range(count - 1)]
        up = [effort.line() for _ in range(count - 1)]
        ties = [(owner, alias, tie, effort.line()) for owner, alias, tie in self._ties]
        turns = [_Turn(
            number, stage, effort, microbatches, seed, on_last, on_done if number == 0 else None,
            down[number - 1:number] if number else [], down[number:number + 1],
            up[number - 1:number] if number else [], up[number:number + 1],
            [(tie.alias, line) for _, alias, tie, line in ties if alias == number],
            [(tie.owner, line) for owner, _, tie, line in ties if owner == number])
            for number, stage in enumerate(self._stages)]
        self._crew.run([turn.job(self._order(number, len(microbatches))) for number, turn in enumerate(turns)], effort)
        check_untouched(before)

    def _order(self, stage: int, microbatches: int) -> list[tuple[Pass, bool]]:
        """The passes of a stage; with each whether it keeps what backward needs."""
        count = len(self._stages)
        if self._recompute and stage == count - 1:  # to wait with forward costs as little memory, and no recomputation
            return [(one(number), True) for number in range(microbatches) for one in (Forward, Backward)]
        order = list(schedules.passes(self._schedule, stage, count, microbatches))
        return [(one, not self._recompute or then == Backward(one.microbatch))
                for one, then in zip(order, [*order[1:], None])]

    def infer(self, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        """The model's output, one stage after another, in the calling thread."""
        value = Crossing(inputs, [])
        for stage in self._stages:
            with stage.lane.entered():
                value, named = Crossing(self._infer(stage, value, named), [], stage.lane.signal()), {}
        return value.values

    @staticmethod
    def _infer(stage: Stage, given: Crossing, named: Mapping[str, Any]) -> Any:
        return stage.part(*spread(mapped(given.values, lambda tensor: stage.lane.take(tensor, given.signal))), **named)

    def train(self, mode: bool) -> None:
        """Switch all parts, copies of tied layers too, to training or to evaluation."""
        for part in self._parts:
            part.train(mode)

    def sync(self) -> None:
        """Give the aliases of tied parameters their owners' values: weights have been changed, or moved in memory."""
        for part in self._parts:
            for tie in part.ties:
                tie.sync()

    def close(self) -> None:
        """End the threads."""
        self._crew.close()


Line = queue.SimpleQueue


@dataclass
class _Turn:
    """A stage in one step. Of the lines to its neighbours there is one each, or none at the ends of the chain."""

    number: int
    stage: Stage
    effort: Effort
    microbatches: Sequence[Microbatch]
    seed: int
    on_last: Callable[[int], None]
    on_done: Callable[[], None] | None
    inputs: list[Line]
    outputs: list[Line]
    input_gradients: list[Line]
    output_gradients: list[Line]
    aliases: list[tuple[torch.nn.Parameter, Line]]
    owners: list[tuple[torch.nn.Parameter, Line]]
    kept: dict[int, Kept] = field(default_factory=dict)

    @property
    def row(self) -> str:
        """Where its marks go."""
        return f"{tracing.STAGE} {self.number}"

    def job(self, order: Sequence[tuple[Pass, bool]]) -> Callable[[], None]:
        """Does the passes of ``order``."""
        def work() -> None:
            # PyTorch counts threads for each thread anew when it is asked, and would take one for each core until then.
            torch.get_num_threads()
            with self.stage.lane.entered():
                for one, keep in order:
                    self.effort.check()
                    if isinstance(one, Forward):
                        self._forward(one.microbatch, keep)
                    else:
                        self._backward(one.microbatch)

        return work

    def _forward(self, number: int, keep: bool) -> None:
        batch = self.microbatches[number]
        given = self.effort.get(self.inputs[0]) if self.inputs else crossing(batch.inputs, strict=False)
        named = batch.named if not self.inputs else {}
        loss = batch.loss if not self.outputs else None
        with tracing.span(self.row, "forward", number):
            handed, self.kept[number] = self.stage.forward(given, named, number, self.seed, keep=keep, loss=loss)
        if self.outputs:
            self.outputs[0].put(handed)

    def _backward(self, number: int) -> None:
        kept = self.kept.pop(number)
        if kept.outputs is None:  # while the next stages still compute what this one is to wait for
            with tracing.span(self.row, "forward again", number):
                self.stage.recompute(kept, number, self.seed)
        gradients = self.effort.get(self.output_gradients[0]) if self.output_gradients else None
        tied = [(owner, self.effort.get(line)) for owner, line in self.owners]
        with tracing.span(self.row, "backward", number):
            if number == len(self.microbatches) - 1:
                self.on_last(self.number)
            found = self.stage.backward(kept, gradients, tied)
        for alias, line in self.aliases:
            line.put(found._replace(values=[alias.grad]))
            alias.grad = None
        if self.input_gradients:
            self.input_gradients[0].put(found)
        if self.on_done is not None:
            self.on_done()
