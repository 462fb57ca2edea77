"""Measures what the links of a Keras model cost: seconds forward and backward, bytes of parameters, activations, borders.

One graph runs all links, each after the one before it, with a look at the clock in between::

    clock  link 0  clock  link 1 + loss  clock  back of link 1  clock  back of link 0  clock
      |______________|________________|____________________|____________________|

Memory is read from the same graph: what backward's operations take of what forward's have made.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import Any, Sequence

import keras
import numpy as np
import tensorflow as tf

from hvtrain.adapters.keras import pipeline
from hvtrain.adapters.keras.batches import tensors
from hvtrain.adapters.keras.steps import summed_losses
from hvtrain.adapters.keras.traced import Traced
from hvtrain.hybrid.costs import LayerCost, ModelCosts
from hvtrain.hybrid.keras.links import Chain, chain
from hvtrain.hybrid.keras.passes import LOSS, MicroBatch, Passes, loss_of, plan_of
from hvtrain.hybrid.keras.purity import is_generator
from hvtrain.hybrid.keras.saved import saved_bytes, size
from hvtrain.task import Task

ROUNDS = (4, 12)
"""Fewest and most passes of which the median is taken; the first counts for nothing."""
BUDGET = 1.5
"""Seconds after which no further pass begins."""


@dataclass
class Marks:
    """Of a traced pass: how many operations there were after each link forward, and bytes of the values that go on."""

    operations: list[int]
    outputs: list[int]


def measure(model: keras.Model | Chain, task: Task, batch: Any, count: int, device: str = "/CPU:0",
            optimizer: keras.optimizers.Optimizer | None = None) -> ModelCosts:
    """What each link costs with ``batch`` of ``count`` samples; the loss belongs to the last one.

    Nothing is changed: neither weights nor statistics nor random numbers nor the optimizer. A variable that several
    links use, and a tensor that several keep for backward, counts for the first. What loops keep (of LSTM, for
    instance) is not seen.

    Args:
        model: built, or in links already.
        optimizer: of the model; how long it takes and how large its state is are measured with a twin.

    Raises:
        UserCodeError: the model cannot be cut.
    """
    batch = pipeline.through(task, tensors(batch), "train", tf.zeros(2, tf.int32))
    cut = model if isinstance(model, Chain) else chain(model, task, batch)
    forward, backward, overhead, marks, graph = _times(cut, task, batch, count, device)
    half, slope = count // 2, 1.0
    if half:
        few = tf.nest.map_structure(lambda part: part[:half] if part.shape.rank and len(part) == count else part, batch)
        small = sum(map(sum, _times(cut, task, few, half, device)[:2])) / sum((*forward, *backward))
        slope = min(max((1 - small) / (1 - half / count), 0.0), 1.0)
    saved = saved_bytes(graph, marks.operations)
    entered = sum(map(size, tf.nest.flatten(cut.begin(task, batch))))
    update, state = (0.0, 0.0) if optimizer is None else _update(optimizer, cut.model.trainable_variables, device)
    layers = tuple(LayerCost(*values) for values in zip(cut.names, forward, backward, _parameters(cut), saved, marks.outputs))
    return ModelCosts(layers, count, device, state, update, overhead, slope, entered)


def _times(cut: Chain, task: Task, batch: Any, count: int,
           device: str) -> tuple[list[float], list[float], float, Marks, Any]:
    """Median seconds of each link forward and backward, and of what belongs to none; what is in the graph."""
    links, marks = len(cut.links), Marks([], [])
    traced = Traced(lambda parts: _graph(cut, task, parts, count, device, marks), [
        tf.nest.map_structure(lambda part: tf.TensorSpec(part.shape, part.dtype), batch)])
    parts, rounds = tf.nest.flatten(batch), []
    began = time.perf_counter()
    while len(rounds) < ROUNDS[0] or (len(rounds) < ROUNDS[1] and time.perf_counter() - began < BUDGET):
        begin = time.perf_counter()
        clock = traced(*parts)[0].numpy()
        seconds = time.perf_counter() - begin
        passed = np.diff(clock).tolist()
        rounds.append([*passed, max(0.0, seconds - sum(passed))])
    medians = [median(times) for times in zip(*rounds[1:])]
    return medians[:links], medians[links:2 * links][::-1], medians[-1], marks, traced.graph


def _graph(cut: Chain, task: Task, batch: Any, count: int, device: str, marks: Marks) -> list[tf.Tensor]:
    """The times at which the links began and ended, forward and then backward; and every gradient, because TensorFlow does
    not compute what nobody asks for, even where the clock waits for it (2.21, Grappler's dependency optimizer)."""
    with tf.device(device):
        weight = tf.constant(count, tf.float32)
        micro = MicroBatch(batch, tf.zeros([len(cut.links) + 2, 2], tf.uint32), weight, cut.begin(task, batch))
        micro.gradients[LOSS] = scale = tf.constant(1 / count, tf.float32)
        passes = Passes(cut.model.trainable_variables)
        plan = plan_of(cut.links, 0)
        plan.append(loss_of(cut, lambda micro, values: summed_losses(task, cut.outputs(values), micro.batch, weight)))
        clock, taped, asked = [_now(list(micro.values.values()))], [], []
        for number in range(len(cut.links)):
            steps = plan[number:] if number == len(cut.links) - 1 else plan[number:number + 1]
            with tf.control_dependencies(clock[-1:]):
                taped.append(passes.forward(0, steps, micro))
            clock.append(_now([value for step in taped[-1] for value in step.outputs.values()]))
            needed = {key for later in cut.links[number + 1:] for key in later.takes} | set(cut.results)
            marks.outputs.append(sum(size(value) for key, value in micro.values.items() if key in needed and key >= 0))
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
    for _ in range(ROUNDS[0]):
        begin = time.perf_counter()
        step(*gradients)
        times.append(time.perf_counter() - begin)
    weights = sum(size(variable.value) for variable in copies)
    state = sum(size(variable.value) for variable in twin.variables if variable.shape.rank)
    return median(times[1:]), state / weights if weights else 0.0
