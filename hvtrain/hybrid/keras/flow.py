r"""Micro-batches through the traced functions of the stages, a thread for each stage.

::

    thread 0   F0 F1 -- B0 F2 -- B1 -- B2 => regularisation, buckets taken
                 \     /                          lines between neighbours only say that a micro-batch has come;
    thread 1      F0 B0 F1 B1 F2 B2 => taken      its values lie in its own tables

What each stage does comes from :mod:`hvtrain.hybrid.schedule`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Callable, Sequence

import tensorflow as tf

from hvtrain import tracing
from hvtrain.hybrid import schedule
from hvtrain.hybrid.keras.traces import StageTrace
from hvtrain.hybrid.workers import Crew, Effort

@dataclass
class Travelling:
    """A micro-batch on its way: the ``traces`` it goes through, and what there is of it by now.

    ``values`` and ``gradients`` go by the number of the value; ``variables``, their gradients, by the variable's; what
    is ``kept`` for backward and ``terms`` of the loss by the stage.
    """

    traces: Sequence[StageTrace]
    seeds: tf.Tensor
    weight: tf.Tensor
    values: dict[int, Sequence[tf.Tensor]]
    gradients: dict[int, tf.Tensor] = field(default_factory=dict)
    variables: dict[int, tf.Tensor] = field(default_factory=dict)
    kept: dict[int, list[tf.Tensor]] = field(default_factory=dict)
    terms: dict[int, tf.Tensor] = field(default_factory=dict)
    number: tf.Tensor | None = None

    def forward(self, stage: int) -> None:
        trace = self.traces[stage]
        takes = [tensor for key in trace.takes.keys for tensor in self.values[key]]
        results, self.kept[stage] = trace.halves.forward([self.seeds, self.weight, *takes])
        if stage == len(self.traces) - 1:
            self.number = results.pop()
            self.values.clear()
        if trace.terms:
            self.terms[stage] = results.pop()
        self.values.update(trace.gives.split(results))

    def backward(self, stage: int, scale: tf.Tensor, first: tf.Tensor, before: list[tf.Tensor]) -> None:
        """Add the gradients of the stage's own variables to those ``before``, a list over all variables."""
        trace = self.traces[stage]
        results = trace.halves.backward([
            self.weight, scale, first, *map(self.gradients.pop, trace.upstream), *map(self.variables.pop, trace.shared),
            *(before[key] for key in trace.owned)], self.kept.pop(stage))
        given = iter(results)
        self.gradients.update(zip(trace.entering, given))
        self.variables.update(zip(trace.passed, given))
        for key, total in zip(trace.totals, given):
            before[key] = total


class Flow:
    """The stages' threads.

    Args:
        devices: of the stages.
        schedule: a value of ``hybrid.schedule``.
    """

    def __init__(self, devices: Sequence[str], schedule: str):
        self._devices, self._schedule, self._crew = devices, schedule, Crew(len(devices))

    def run(self, micros: Sequence[Travelling], scale: tf.Tensor, totals: Sequence[list[tf.Tensor]], *,
            on_forward: Callable[[], None], on_done: Callable[[], None], on_last: Callable[[int], None]) -> None:
        """Forward and backward of ``micros``, with a loss times ``scale``.

        Args:
            totals: of each stage, a number for each variable, to be replaced by the sum of its gradients.
            on_forward: called when the first micro-batch has come through all stages.
            on_done: called when a micro-batch is done with.
            on_last: called with a stage's number when that has nothing left to do but to be rid of ``totals``.

        These are called by the stages' threads. Raises what a stage has raised first, when all have stopped.
        """
        effort, count = Effort(), len(self._devices)
        down, up = ([effort.line() for _ in range(count - 1)] for _ in range(2))
        first, later = tf.constant(True), tf.constant(False)

        def job(stage: int) -> None:
            row, last = f"{tracing.STAGE} {stage}", stage == count - 1
            with tf.device(self._devices[stage]):
                for one in schedule.passes(self._schedule, stage, count, len(micros)):
                    effort.check()
                    number = one.microbatch
                    if isinstance(one, schedule.Forward):
                        if stage:
                            effort.get(down[stage - 1])
                        with tracing.span(row, "forward", number):
                            micros[number].forward(stage)
                        if not last:
                            down[stage].put(number)
                        elif number == 0:
                            on_forward()
                    else:
                        if not last:
                            effort.get(up[stage])
                        with tracing.span(row, "backward", number):
                            micros[number].backward(stage, scale, later if number else first, totals[stage])
                        if stage:
                            up[stage - 1].put(number)
                        else:
                            on_done()
                on_last(stage)

        self._crew.run([partial(job, stage) for stage in range(count)], effort)
