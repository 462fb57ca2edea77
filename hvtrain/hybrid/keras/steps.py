r"""A step of a Keras model in stages: each stage's functions are called for one micro-batch after another.

::

    device 0   F0 F1 -- B0 F2 -- B1 -- B2 -+-> buckets of stage 0 ---> taken
                 \     /                   |
    device 1      F0 B0 F1 B1 F2 B2 -+-> buckets of stage 1 ---> taken, while stage 0 goes on

They are traced once, whatever the number of micro-batches (:mod:`hvtrain.hybrid.keras.traces`). A variable's gradients
are added up in the order of the micro-batches. Random numbers come from (seed, step, rank, micro-batch, link). With
recomputation a stage keeps what enters it, and runs its links again before their backward pass.
"""

from __future__ import annotations

from typing import Any, Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from hvtrain import probe, tracing
from hvtrain.adapters.keras import graphs
from hvtrain.adapters.keras.batches import AnyBatch, tensors
from hvtrain.adapters.keras.steps import Steps, account, check_number, summed_losses
from hvtrain.config.hybrid import HybridConfig
from hvtrain.hybrid.keras.flow import Flow, Travelling
from hvtrain.hybrid.keras.links import Chain
from hvtrain.hybrid.keras.passes import MicroBatch, Step, plan_of, with_loss
from hvtrain.hybrid.keras.purity import Pure
from hvtrain.hybrid.keras.regularisation import regulariser
from hvtrain.hybrid.keras.stages import Stage, owners
from hvtrain.hybrid.keras.traces import BATCH, Plan, StageTrace, trace


class StagedSteps(Steps):
    """As :class:`hvtrain.adapters.keras.steps.Steps`, of a model cut into ``stages``.

    Args:
        parts: as of Steps.
    """

    def __init__(self, *parts: Any, chain: Chain, stages: Sequence[Stage], hybrid: HybridConfig):
        super().__init__(*parts)
        self._chain, self._stages = chain, stages
        owner = owners(stages, self._trainable)
        owned = [[number for number, its in enumerate(owner) if its == stage.number] for stage in stages]
        self.seeds = len(chain.links) + 2  # one for each link, for the loss, and for the pipeline
        self._traced = Plan(
            self._task, chain, stages, [self._steps_of(stage) for stage in stages], self._trainable, owned, self.seeds,
            hybrid.recompute, lambda variable: self._variables.names.get(id(variable), variable.path))
        self.compute_graphs = _ByKind(self._trace)
        self._flow = Flow([stage.device for stage in stages], hybrid.schedule)
        self._nothing = [tf.zeros([], variable.value.dtype) for variable in self._trainable]
        self._regularisers = [regulariser(self._trainable, numbers, stage.device)
                              for stage, numbers in zip(stages, owned)]
        self._buckets = [[bucket for bucket in self._plan if owner[bucket.slots[0].index] == stage.number]
                         for stage in stages]

    def step(self, batches: Sequence[Any], counts: Sequence[int], share: float, factor: float,
             seeds: Callable[[int], np.ndarray], begin: Callable[[bool, bool], None], tick: Callable[[], None]) -> float:
        if not batches:
            return 0.0
        begin(True, True)
        with tracing.span(tracing.COMPUTE, "forward and backward"):
            return self._run([tensors(batch) for batch in batches], counts, share, factor, seeds, tick)

    def rehearse(self, batch: Any, count: int, seeds: Callable[[int], np.ndarray]) -> None:
        self._run([batch], [count], 0.0, 1.0, seeds, lambda: None)

    def _run(self, batches: Sequence[Any], counts: Sequence[int], share: float, factor: float,
             seeds: Callable[[int], np.ndarray], tick: Callable[[], None]) -> float:
        micros = [self._travelling(batch, count, seeds(number))
                  for number, (batch, count) in enumerate(zip(batches, counts))]
        scale = tf.constant(np.float32(share) * np.float32(factor))
        weight = tf.constant(float(sum(counts)), tf.float32)
        totals = [list(self._nothing) for _ in self._stages]
        terms: dict[int, tf.Tensor] = {}

        def done(stage: int) -> None:
            if self._regularisers[stage] is not None:
                terms.update(self._regularisers[stage](weight, scale, totals[stage]))
            self._take_buckets(stage, totals[stage])

        try:
            self._flow.run(micros, scale, totals, on_forward=lambda: probe.reached("forward"), on_done=tick,
                           on_last=done)
        except tf.errors.OpError as error:
            raise account(error, "the training step") from error
        loss = 0.0
        for micro, count in zip(micros, counts):
            check_number(f"Task.loss gave {float(micro.number):g} losses", float(micro.number), count)
            loss = sum(self._terms(micro), loss)
        return sum((float(terms[number]) for number in sorted(terms)), loss)

    @staticmethod
    def _terms(micro: Travelling) -> list[float]:
        """The loss, and what layers have added in the order of the links."""
        *others, (loss, *own) = (micro.terms[stage].numpy().tolist() if stage in micro.terms else []
                                 for stage in range(len(micro.traces)))
        return [loss, *(term for terms in others for term in terms), *own]

    def _travelling(self, batch: Any, count: int, seeds: np.ndarray) -> Travelling:
        parts = tf.nest.flatten(batch)
        return Travelling(self.compute_graphs.traced_for(batch, parts), tf.convert_to_tensor(seeds),
                          tf.constant(float(count), tf.float32), {BATCH: parts})

    def _take_buckets(self, stage: int, totals: Sequence[tf.Tensor]) -> None:
        for bucket in self._buckets[stage]:
            for slot in bucket.slots:
                total = totals[slot.index]
                self._take(slot.index, None if total is self._nothing[slot.index] else total._numpy())

    # What is traced ------------------------------------------------------------------------------------------
    def _trace(self, batch: Any) -> list[StageTrace]:
        traced = trace(self._traced, batch)
        for stage in traced:
            forward, backward = stage.halves.graphs
            self._inspect(forward)
            graphs.check_randomness(backward)
        return traced

    def _steps_of(self, stage: Stage) -> list[Step]:
        steps = plan_of(stage.links, stage.first)
        return with_loss(self._chain, steps, self._loss) if stage is self._stages[-1] else steps

    def _loss(self, micro: MicroBatch, values: Mapping[int, Any]) -> list[tf.Tensor]:
        return summed_losses(self._task, self._chain.outputs(values), micro.batch, micro.weight)

    def _outputs(self, batch: Any) -> Any:
        values = self._chain.begin(self._task, batch)
        for stage in self._stages:
            with tf.device(stage.device):
                for link in stage.links:
                    with Pure(False):
                        values.update(zip(link.gives, link(values, False)))
        return self._chain.outputs(values)


class _ByKind(AnyBatch):
    """The stages' functions for each kind of micro-batch; ``trace`` makes them."""

    def __init__(self, trace: Callable[[Any], list[StageTrace]]):
        super().__init__(trace, [])

    def _trace(self, batch: Any) -> list[StageTrace]:
        return self._function(batch)
