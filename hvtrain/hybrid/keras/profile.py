"""Measures what the links of a Keras model cost: seconds forward and backward, bytes of parameters, activations, borders.

One graph runs all links, each after the one before it, with a look at the clock in between::

    clock  link 0  clock  link 1 + loss  clock  back of link 1  clock  back of link 0  clock
      |______________|________________|____________________|____________________|

Memory is read from the same graph: what backward's operations take of what forward's have made.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from statistics import median
from typing import Any, Callable, Iterable, Sequence

import keras
import numpy as np
import tensorflow as tf

from hvtrain.adapters.keras import pipeline
from hvtrain.adapters.keras.batches import tensors
from hvtrain.adapters.keras.steps import summed_losses
from hvtrain.adapters.keras.traced import Traced
from hvtrain.errors import Uncuttable
from hvtrain.hybrid.costs import LayerCost, ModelCosts
from hvtrain.hybrid.keras.links import Chain, chain, whole
from hvtrain.hybrid.keras.passes import LOSS, MicroBatch, Passes, plan_of, with_loss
from hvtrain.hybrid.keras.purity import is_generator
from hvtrain.hybrid.keras.saved import saved_bytes, size
from hvtrain.task import Task

Times = tuple[list[float], list[float], float]
ROUNDS = (3, 11)
"""Fewest and most passes of which the median is taken."""
BUDGET = 2.0
"""Seconds after which no further pass begins."""
LONGEST = 5.0
"""Seconds that a pass may take. Where it would be more, a smaller micro-batch says as well what a sample takes."""


@dataclass
class Marks:
    """Of a traced pass: how many operations there were after each link forward, and bytes of the values that go on."""

    operations: list[int]
    outputs: list[int]


def measure(model: keras.Model | Chain, task: Task, batch: Any, count: int, device: str = "/CPU:0",
            optimizer: keras.optimizers.Optimizer | None = None, *, uncut: bool = False, sizes: Sequence[int] = (),
            room: float = math.inf, gate: Callable[[], None] = lambda: None) -> tuple[ModelCosts, ...]:
    """What each link costs with the first samples of ``batch``, which has ``count``; the loss belongs to the last one.

    Nothing is changed: neither weights nor statistics nor random numbers nor the optimizer. A variable that several
    links use, and a tensor that several keep for backward, counts for the first. What loops keep (of LSTM, for
    instance) is not seen.

    Args:
        model: built, or in links already.
        optimizer: of the model; how long it takes and how large its state is are measured with a twin.
        uncut: measure a model that cannot be cut as one layer, instead of raising.
        sizes: numbers of samples to measure with, ascending; empty for ``count``. One answer comes for each, but for those
            at the end whose activations would take more than ``room`` bytes, whose passes would take very long, or for
            which a GPU's memory is too small.
        gate: called before what is to be done at the same time by all processes that measure.

    Raises:
        Uncuttable: the model cannot be cut.
    """
    batch = tensors(batch)
    cut = model if isinstance(model, Chain) else _chain(model, task, _first(batch, count, min(sizes, default=count)), uncut)
    batch = pipeline.through(task, batch, "train", tf.zeros(2, tf.int32))
    passes: list[_Pass] = []
    for number in sizes or (count,):
        one = _Pass(cut, task, _first(batch, count, number), number, device)
        if passes and sum((*one.saved, *one.outputs, one.entered)) > room:
            break
        passes.append(one)
    gate()
    times = _times(passes)
    gate()
    update, state = (0.0, 0.0) if optimizer is None else _update(optimizer, cut.model.trainable_variables, device)
    parameters = _parameters(cut)
    return tuple(
        ModelCosts(tuple(map(LayerCost, cut.names, forward, backward, parameters, one.saved, one.outputs)), one.count, device,
                   state, update, overhead, one.entered)
        for one, (forward, backward, overhead) in zip(passes, times))


def _chain(model: keras.Model, task: Task, batch: Any, uncut: bool) -> Chain:
    try:
        return chain(model, task, batch)
    except Uncuttable:
        if not uncut:
            raise
        return whole(model, task)


def _first(batch: Any, count: int, few: int) -> Any:
    """The first samples of a batch, wherever a tensor in it has one for each."""
    return tf.nest.map_structure(lambda part: part[:few] if part.shape.rank and len(part) == count else part, batch)


class _Pass:
    """One micro-batch of ``count`` samples, traced; and the bytes that backward keeps of each link, that each hands on, and
    that enter the first."""

    def __init__(self, cut: Chain, task: Task, batch: Any, count: int, device: str):
        self.count, self._links = count, len(cut.links)
        marks = Marks([], [])
        self._traced = Traced(lambda parts: _graph(cut, task, parts, count, device, marks), [
            tf.nest.map_structure(lambda part: tf.TensorSpec(part.shape, part.dtype), batch)])
        self._parts = tf.nest.flatten(batch)
        self.saved, self.outputs = saved_bytes(self._traced.graph, marks.operations), marks.outputs
        self.entered = sum(map(size, tf.nest.flatten(cut.begin(task, batch))))

    def once(self) -> Times:
        """Run it: seconds of each link forward and backward, and of what belongs to none."""
        begin = time.perf_counter()
        clock = self._traced(*self._parts)[0].numpy()
        seconds = time.perf_counter() - begin
        passed = np.diff(clock).tolist()
        return passed[:self._links], passed[self._links:][::-1], max(0.0, seconds - sum(passed))


def _times(passes: Sequence[_Pass]) -> list[Times]:
    """Medians of ``passes``, which take turns; those at the end are left out that would take very long, or more memory than
    a GPU has."""
    passes[0].once()  # what is done once only counts for nothing
    sample = sum(map(sum, passes[0].once()[:2])) / passes[0].count
    passes = passes[:1] + _fitting([one for one in passes[1:] if one.count * sample <= LONGEST])
    rounds: list[list[Times]] = []
    began = time.perf_counter()
    while len(rounds) < ROUNDS[0] or (len(rounds) < ROUNDS[1] and time.perf_counter() - began < BUDGET):
        rounds.append([one.once() for one in passes])
    return [(_medians(forward), _medians(backward), median(overhead))
            for forward, backward, overhead in (zip(*runs) for runs in zip(*rounds))]


def _fitting(passes: Sequence[_Pass]) -> list[_Pass]:
    """The first of ``passes``, each run once, up to one for which memory is too small."""
    for number, one in enumerate(passes):
        try:
            one.once()
        except tf.errors.ResourceExhaustedError:
            return list(passes[:number])
    return list(passes)


def _medians(rounds: Iterable[Sequence[float]]) -> list[float]:
    return [median(times) for times in zip(*rounds)]


def _graph(cut: Chain, task: Task, batch: Any, count: int, device: str, marks: Marks) -> list[tf.Tensor]:
    """The times at which the links began and ended, forward and then backward; and every gradient, because TensorFlow does
    not compute what nobody asks for, even where the clock waits for it (2.21, Grappler's dependency optimizer)."""
    with tf.device(device):
        weight = tf.constant(count, tf.float32)
        micro = MicroBatch(batch, tf.zeros([len(cut.links) + 2, 2], tf.uint32), weight, cut.begin(task, batch))
        micro.gradients[LOSS] = scale = tf.constant(1 / count, tf.float32)
        passes = Passes(cut.model.trainable_variables)
        plan = with_loss(cut, plan_of(cut.links, 0), lambda micro, values: summed_losses(
            task, cut.outputs(values), micro.batch, weight))
        clock, taped, asked = [_now(list(micro.values.values()))], [], []
        for number in range(len(cut.links)):
            steps = plan[number:] if number == len(cut.links) - 1 else plan[number:number + 1]
            with tf.control_dependencies(clock[-1:]):
                taped.append(passes.forward(0, steps, micro))
            clock.append(_now([value for step in taped[-1] for value in step.outputs.values()]))
            needed = {key for later in cut.links[number + 1:] for key in later.takes} | set(cut.results)
            marks.outputs.append(sum(size(leaf) for key, value in micro.values.items() if key in needed and key >= 0
                                     for leaf in tf.nest.flatten(value)))
            marks.operations.append(len(clock[0].graph.get_operations()))
        for steps in reversed(taped):
            with tf.control_dependencies(clock[-1:]):
                made = passes.backward(steps, micro, scale)
            clock.append(_now(made or clock[-1:]))
            asked += [value for value in made if tf.is_tensor(value)]
        return [tf.stack(clock), *asked]


def _now(after: Sequence[Any]) -> tf.Tensor:
    with tf.control_dependencies([value for value in after if tf.is_tensor(value)]):
        return tf.timestamp()


def _parameters(cut: Chain) -> list[int]:
    known: set[int] = set()
    found = []
    for link in cut.links:
        new = {id(variable): variable for variable in link.variables
               if id(variable) not in known and not is_generator(variable)}
        known |= new.keys()
        found.append(sum(variable.value.dtype.size * int(np.prod(variable.shape)) for variable in new.values()))
    return found


def _update(optimizer: keras.optimizers.Optimizer, trainable: Sequence[Any], device: str) -> tuple[float, float]:
    """Seconds of a step of ``optimizer``'s twin over copies, and its bytes for each byte of the variables."""
    with tf.device(device):
        copies = [keras.Variable(variable.value, dtype=variable.dtype) for variable in trainable]
        twin = type(optimizer).from_config(optimizer.get_config())
        twin.build(copies)
        gradients = [tf.zeros_like(variable.value) for variable in copies]
        step = Traced(lambda parts: twin.apply(list(parts), copies), [[
            tf.TensorSpec(part.shape, part.dtype) for part in gradients]])
    times = []
    for _ in range(1 + ROUNDS[0]):
        begin = time.perf_counter()
        step(*gradients)
        times.append(time.perf_counter() - begin)
    weights = sum(size(variable.value) for variable in copies)
    state = sum(size(variable.value) for variable in twin.variables if variable.shape.rank)
    return median(times[1:]), state / weights if weights else 0.0
