r"""All micro-batches of a step through all stages, as one graph.

Each stage's passes are chained by control dependencies in the order of its schedule, so that a stage does one pass at a
time and, with 1f1b, keeps the activations of few micro-batches; what goes between stages are plain tensors::

    device 0   F0 -> F1 -> B0 -> F2 -> B1 -> B2 -+-> buckets of stage 0 ---> taken
                 \     ^     \     ^
    device 1      F0 -> B0 -> F1 -> B1 -> ...    +-> buckets of stage 1 ---> taken, while stage 0 goes on

A variable's gradients are added up in the order of the micro-batches. Random numbers come from (seed, step, rank,
micro-batch, link). With recomputation a stage keeps what enters it, and runs its links again before their backward pass.
"""

from __future__ import annotations

from typing import Any, Callable, Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf

from hvtrain import probe, tracing
from hvtrain.adapters.keras import pipeline
from hvtrain.adapters.keras.batches import tensors
from hvtrain.adapters.keras.steps import Steps, check_number, summed_losses
from hvtrain.config.hybrid import HybridConfig
from hvtrain.errors import UserCodeError
from hvtrain.hybrid import schedule
from hvtrain.hybrid.keras.alike import AlikeBatches
from hvtrain.hybrid.keras.links import Chain
from hvtrain.hybrid.keras.passes import LOSS, NUMBER, MicroBatch, Passes, Step, Taped, loss_of, plan_of
from hvtrain.hybrid.keras.purity import Pure
from hvtrain.hybrid.keras.stages import Stage, owners

class StagedSteps(Steps):
    """As :class:`hvtrain.adapters.keras.steps.Steps`, of a model cut into ``stages``.

    Args:
        parts: as of Steps.
        microbatches: how many most steps have; a graph for fewer is traced when it is needed.
    """

    def __init__(self, *parts: Any, chain: Chain, stages: Sequence[Stage], hybrid: HybridConfig, microbatches: int):
        super().__init__(*parts)
        self._chain, self._stages, self._hybrid, self._microbatches = chain, stages, hybrid, microbatches
        self._devices = [stages[owner].device for owner in owners(stages, self._trainable)]
        self.seeds = len(chain.links) + 2  # one for each link, for the loss, and for the pipeline
        self.compute_graphs = AlikeBatches(
            self._step_graph, [tf.TensorSpec([None], tf.float32), tf.TensorSpec([None, self.seeds, 2], tf.uint32)],
            self._inspect)

    def step(self, batches: Sequence[Any], counts: Sequence[int], share: float, factor: float,
             seeds: Callable[[int], np.ndarray], begin: Callable[[bool, bool], None], tick: Callable[[], None]) -> float:
        if not batches:
            return 0.0
        begin(True, True)
        with tracing.span(tracing.COMPUTE, "forward and backward"):
            loss = self._run([tensors(batch) for batch in batches], counts, share, factor, seeds)
        tick()
        return loss

    def rehearse(self, batch: Any, count: int, seeds: Callable[[int], np.ndarray]) -> None:
        self._run([batch] * self._microbatches, [count] * self._microbatches, 0.0, 1.0, seeds)

    def _run(self, batches: Sequence[Any], counts: Sequence[int], share: float, factor: float,
             seeds: Callable[[int], np.ndarray]) -> float:
        (terms, numbers), gradients = self._called(
            list(batches), tf.constant([*counts, share, factor], tf.float32),
            tf.convert_to_tensor(np.stack([seeds(number) for number in range(len(batches))])))
        for number, count in zip(numbers.numpy().tolist(), counts):
            check_number(f"Task.loss gave {number:g} losses", number, count)
        self._take_all(gradients)
        return sum(terms.numpy().tolist())

    # The graph -------------------------------------------------------------------------------------------
    def _step_graph(self, batches: Sequence[Any], numbers: tf.Tensor,
                    seeds: tf.Tensor) -> tuple[tuple[tf.Tensor, tf.Tensor], list[tf.Tensor | None]]:
        count = len(batches)
        scale = numbers[count] * numbers[count + 1]
        passes = Passes(self._trainable)
        micros = [self._begin(batch, numbers[number], seeds[number]) for number, batch in enumerate(batches)]
        for micro in micros:
            micro.gradients[LOSS] = scale
        self._flow(passes, micros, scale)
        gradients = [self._over_micros(variable, device, micros) for variable, device in zip(self._trainable, self._devices)]
        terms = [term for micro in micros for term in (micro.values[LOSS], *micro.losses)]
        terms += self._regularise(gradients, tf.reduce_sum(numbers[:count]), scale)
        self._keep(passes)
        counted = tf.stack([micro.values[NUMBER] for micro in micros])
        return (tf.stack(terms), counted), self._hand_over_all(gradients)

    def _begin(self, batch: Any, weight: tf.Tensor, seeds: tf.Tensor) -> MicroBatch:
        batch = pipeline.through(self._task, batch, "train", tf.bitcast(seeds[self.seeds - 1], tf.int32))
        return MicroBatch(batch, seeds, weight, self._chain.begin(self._task, batch))

    def _flow(self, passes: Passes, micros: Sequence[MicroBatch], scale: tf.Tensor) -> None:
        """Trace all passes, each after the one before it on its stage."""
        plans = [self._plan_of(stage) for stage in self._stages]
        taped: dict[tuple[int, int], list[Taped]] = {}
        states: dict[tuple[int, int], Mapping[int, Any]] = {}
        ends: list[list[tf.Operation]] = [[] for _ in plans]
        for number, one in _in_order(self._hybrid.schedule, len(plans), len(micros)):
            micro, place = micros[one.microbatch], (number, one.microbatch)
            with tf.device(self._stages[number].device), tf.control_dependencies(ends[number]):
                if isinstance(one, schedule.Forward):
                    states[place] = passes.snapshot()
                    taped[place] = passes.forward(number, plans[number], micro)
                    made = [value for link in taped[place] for value in link.outputs.values()]
                    if number == len(plans) - 1 and one.microbatch == 0:
                        self._call(lambda value: probe.reached("forward"), [micro.values[LOSS]])
                else:
                    if self._hybrid.recompute:
                        taped[place] = passes.again(plans[number], micro, states[place])
                    made = passes.backward(taped.pop(place), micro, scale)
            with tf.device(self._stages[number].device), tf.control_dependencies(
                    [value for value in made if tf.is_tensor(value)] or ends[number]):
                ends[number] = [tf.no_op()]

    def _plan_of(self, stage: Stage) -> list[Step]:
        plan = plan_of(stage.links, stage.first)
        if stage is self._stages[-1]:
            plan.append(loss_of(self._chain, self._loss))
        return plan

    def _loss(self, micro: MicroBatch, values: Mapping[int, Any]) -> list[tf.Tensor]:
        return summed_losses(self._task, self._chain.outputs(values), micro.batch, micro.weight)

    def _over_micros(self, variable: Any, device: str, micros: Sequence[MicroBatch]) -> tf.Tensor | None:
        """The gradient of ``variable`` over all micro-batches, in their order."""
        total = None
        with tf.device(device):
            for micro in micros:
                gradient = micro.variables.get(id(variable))
                if gradient is not None:
                    total = gradient if total is None else total + gradient
        return total

    def _regularise(self, gradients: list[tf.Tensor | None], weight: tf.Tensor, scale: tf.Tensor) -> list[tf.Tensor]:
        """The losses of variables with a regulariser, times the step's samples; their gradients are added."""
        terms = []
        for number, (variable, device) in enumerate(zip(self._trainable, self._devices)):
            if variable.regularizer is None:
                continue
            with tf.device(device):
                with tf.GradientTape() as tape:
                    loss = tf.reduce_sum(tf.cast(variable.regularizer(variable), tf.float32))
                gradient = tape.gradient(loss, variable.value, weight * scale)
                if gradient is not None:
                    before = gradients[number]
                    gradients[number] = gradient if before is None else before + gradient
            terms.append(loss * weight)
        return terms

    def _keep(self, passes: Passes) -> None:
        """Give variables what links have written into them."""
        for key, (variable, value) in passes.state.items():
            if len(passes.users[key]) > 1:
                name = self._variables.names.get(id(variable), variable.path)
                raise UserCodeError(f"the variable {name!r}, which the forward pass changes, is used by links of the stages "
                                    f"{' and '.join(map(str, sorted(passes.users[key])))}, so that they would have to wait "
                                    "for each other. Choose hybrid.split so that these links lie in one stage, or give "
                                    "each a layer of its own")
            with tf.device(variable.value.device):
                variable.assign(value)

    def _outputs(self, batch: Any) -> Any:
        values = self._chain.begin(self._task, batch)
        for stage in self._stages:
            with tf.device(stage.device):
                for link in stage.links:
                    with Pure(False):
                        values.update(zip(link.gives, link(values, False)))
        return self._chain.outputs(values)


def _in_order(name: str, stages: int, microbatches: int) -> Iterator[tuple[int, schedule.Pass]]:
    """All passes, each after those that it needs: (stage, pass)."""
    todo = [list(schedule.passes(name, stage, stages, microbatches)) for stage in range(stages)]
    done: list[set[schedule.Pass]] = [set() for _ in range(stages)]
    while any(todo):
        for stage, mine in enumerate(todo):
            needed = schedule.source(mine[0], stage, stages) if mine else None
            if mine and (needed is None or mine[0] in done[needed]):
                done[stage].add(mine[0])
                yield stage, mine.pop(0)
