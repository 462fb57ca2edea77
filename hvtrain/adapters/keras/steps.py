"""The traced parts of a step: forward and backward of a micro-batch, the optimizer's update, an evaluation batch.

::

    compute    seeds -> pipeline -> forward -> losses -> backward -+-> [g5 g4] ------> taken ---> reduced, while
                                       |                           +-> [g3 g2 g1] ---> taken    backward goes on
                                       +-> "forward" is reached    +-> [g0] ---------> taken
    update     reduced gradients -> optimizer -> averages

What is handed over in the middle of ``compute`` goes by ``tf.numpy_function``; where there is one bucket only, which
nothing could go beside, and with ``jit_compile``, all of it comes at the end. Nothing is converted by AutoGraph, as in
Keras's own ``fit``: converting took longer than all of the tracing.
"""

from __future__ import annotations

from typing import Any, Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from hvtrain import probe, tracing
from hvtrain.adapters.keras import graphs, pipeline
from hvtrain.adapters.keras.batches import AnyBatch, tensors
from hvtrain.adapters.keras.calling import forward
from hvtrain.adapters.keras.traced import Traced, TracedBeside, shared
from hvtrain.adapters.keras.variables import Variables
from hvtrain.comm.flat import Plan
from hvtrain.errors import UserCodeError
from hvtrain.task import Task

Take = Callable[[int, "np.ndarray | None"], None]


class Steps:
    """Traces what ``task`` says about ``model``.

    Args:
        take: called with the index of each trainable variable and its gradient, or None, from any thread.
        jit: compile forward and backward with XLA.

    Tracing raises UserCodeError for what cannot be done exactly: see :mod:`hvtrain.adapters.keras.graphs`, and
    :meth:`hvtrain.adapters.keras.variables.Variables.statistics`.
    """

    def __init__(self, task: Task, model: keras.Model, variables: Variables, optimizer: keras.optimizers.Optimizer,
                 plan: Plan, take: Take, averages: Sequence[tuple[tf.Variable, tf.Variable]], jit: bool):
        self._task, self._model, self._variables, self._optimizer = task, model, variables, optimizer
        self._trainable = list(variables.trainable.values())
        self._plan, self._take, self._averages, self._jit = plan, take, averages, jit
        self._at_the_end = jit or len(plan) == 1
        self._error: BaseException | None = None
        self.changed: set[str] = set()
        """Names of the variables that forward passes change."""
        self.seeds = len(variables.seeds) + 1
        """How many seeds a step takes: one for each generator of the model, and one for the pipeline."""
        self.compute_graphs = AnyBatch(
            self._compute_graph, [tf.TensorSpec([3], tf.float32), tf.TensorSpec([self.seeds, 2], tf.uint32)],
            self._inspect)
        self.evaluate_graphs = AnyBatch(self._evaluate_graph, [tf.TensorSpec([], tf.float32)])
        self._update: TracedBeside | None = None

    def compute(self, batch: Any, count: int, share: float, factor: float, seeds: np.ndarray) -> float:
        """Forward and backward; gradients of ``share * factor`` times the batch's summed loss are taken on the way.

        ``seeds`` are those of the random generators, shape (``self.seeds``, 2), uint32. Returns the summed loss,
        regularisation included. Raises whatever ``take`` raised, and UserCodeError for losses of a wrong shape.
        """
        result, gradients = self._called(batch, tf.constant([count, share, factor], tf.float32),
                                         tf.convert_to_tensor(seeds))
        value, number = result.numpy().tolist()
        check_number(f"Task.loss gave {number:g} losses", number, count)
        self._take_all(gradients)
        return value

    def step(self, batches: Sequence[Any], counts: Sequence[int], share: float, factor: float,
             seeds: Callable[[int], np.ndarray], begin: Callable[[bool, bool], None], tick: Callable[[], None]) -> float:
        """:meth:`compute` all micro-batches of a step; the sum of what it gives.

        ``seeds`` gives those of a micro-batch by its number; ``begin`` is told of every pass whether it is the first and
        whether it is the last; ``tick`` is called after each.
        """
        loss_sum = 0.0
        for number, (batch, count) in enumerate(zip(batches, counts)):
            begin(number == 0, number == len(batches) - 1)
            with tracing.span(tracing.COMPUTE, "forward and backward", number):
                loss_sum += self.compute(tensors(batch), count, share, factor, seeds(number))
            tick()
        return loss_sum

    def rehearse(self, batch: Any, count: int, seeds: Callable[[int], np.ndarray]) -> None:
        """Trace what :meth:`step` runs, by doing it with a gradient of zero. ``changed`` variables are changed."""
        self.compute(batch, count, 0.0, 1.0, seeds(0))

    def _called(self, batch: Any, *others: tf.Tensor) -> tuple[tf.Tensor, Sequence[tf.Tensor | None]]:
        self._error = None
        try:
            result, gradients = self.compute_graphs(batch, *others)
        except tf.errors.OpError as error:
            if self._error is None:
                raise account(error, "the training step") from error
        if self._error is not None:
            raise self._error
        return result, gradients

    def _take_all(self, gradients: Sequence[tf.Tensor | None]) -> None:
        """Take the gradients that come at the end."""
        for bucket in self._plan if self._at_the_end else ():
            for slot in bucket.slots:
                gradient = gradients[slot.index]
                self._take(slot.index, None if gradient is None else gradient._numpy())

    def trace_update(self, gradients: Sequence[np.ndarray]) -> None:
        """Begin to trace :meth:`update`. ``gradients`` are where it will find them, the same in every step.

        It goes on while the worker waits for the others to form a round, or for their state: a third of the time that a
        replacement takes.
        """
        self._gradients = [(gradient, shared(gradient)) for gradient in gradients]
        signature = [[tf.TensorSpec(v.shape, v.dtype) for v in self._trainable], tf.TensorSpec([], tf.float32)]
        self._update = TracedBeside(lambda: Traced(self._update_graph, signature))

    def update(self, decay: float) -> None:
        """Take an optimizer step, and move the averages towards the weights by ``1 - decay``."""
        assert self._update is not None
        self._update(*(tf.convert_to_tensor(array) if tensor is None else tensor for array, tensor in self._gradients),
                     tf.constant(decay, tf.float32))

    def evaluate(self, batch: Any, count: int) -> dict[str, float]:
        """Loss and metrics of a batch, each summed over its samples."""
        try:
            results = self.evaluate_graphs(batch, tf.constant(count, tf.float32))
        except tf.errors.OpError as error:
            raise account(error, "the evaluation") from error
        sums = {}
        for name, result in results.items():
            sums[name], number = result.numpy().tolist()
            check_number(f"Task.loss gave {number:g} losses" if name == "loss" else
                          f"Task.metrics gave {number:g} values for {name!r}", number, count)
        return sums

    # Graphs ----------------------------------------------------------------------------------------------
    def _compute_graph(self, batch: Any, numbers: tf.Tensor, seeds: tf.Tensor) -> tuple[tf.Tensor, list]:
        for number, variable in enumerate(self._variables.seeds):
            variable.assign(seeds[number])
        batch = pipeline.through(self._task, batch, "train", tf.bitcast(seeds[-1], tf.int32))
        inner = tf.function(self._backward, jit_compile=True, autograph=False) if self._jit else self._backward
        value, number, gradients = inner(batch, *tf.unstack(numbers))
        if self._jit:
            self._call(lambda value: probe.reached("forward"), [value])
        return tf.stack([value, number]), self._hand_over_all(gradients)

    def _backward(self, batch: Any, count: tf.Tensor, share: tf.Tensor,
                  factor: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, list]:
        with tf.GradientTape() as tape:
            losses, number = each_loss(self._task, forward(self._task, self._model, batch, True), batch, count)
            value = tf.reduce_sum(losses)
            for loss in self._model.losses:  # regularisation, of the whole batch; every rank adds its share
                value += tf.reduce_sum(tf.cast(loss, tf.float32)) * count
            if not self._jit:
                self._call(lambda value: probe.reached("forward"), [value])
            scaled = value * share * factor
        gradients = tape.gradient(scaled, [variable.value for variable in self._trainable])
        return value, number, [None if g is None else tf.convert_to_tensor(g) for g in gradients]

    def _inspect(self, graph: Any) -> None:
        """Refuse a training step that would not be the same if it were done again, or on another rank."""
        graphs.check_randomness(graph)
        seeds = {f"seed {number}": variable for number, variable in enumerate(self._variables.seeds)}
        changed = graphs.changed(graph, {**self._variables.weights, **seeds})
        self._variables.check_complete(self._model)
        self.changed.update(name for name in changed if name not in seeds)
        self._variables.statistics(sorted(self.changed), self._task.averaged_buffers)

    def _update_graph(self, gradients: Sequence[tf.Tensor], decay: tf.Tensor) -> None:
        self._optimizer.apply(list(gradients), self._trainable)
        for average, variable in self._averages:
            average.assign_add((variable.value - average) * tf.cast(1 - decay, average.dtype))

    def _evaluate_graph(self, batch: Any, count: tf.Tensor) -> dict[str, tf.Tensor]:
        batch = pipeline.through(self._task, batch, "eval", tf.zeros(2, tf.int32))
        outputs = self._outputs(batch)
        stateful = getattr(self._task, "stateful_metrics", None)
        if stateful is not None:
            stateful.update(outputs, batch)
        losses, number = each_loss(self._task, outputs, batch, count)
        values = {"loss": tf.stack([tf.reduce_sum(tf.cast(losses, tf.float64)), tf.cast(number, tf.float64)])}
        return values | {name: self._sum(name, tf.convert_to_tensor(value), count)
                         for name, value in self._task.metrics(outputs, batch).items()}

    def _outputs(self, batch: Any) -> Any:
        return forward(self._task, self._model, batch, False)

    # Parts of them -----------------------------------------------------------------------------------------
    def _sum(self, name: str, value: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
        """Of a metric: the sum over the samples, and their number."""
        value, count = tf.cast(value, tf.float64), tf.cast(count, tf.float64)
        if value.shape.rank == 0:
            return tf.stack([value * count, count])
        if value.shape.rank != 1:
            raise UserCodeError(f"Task.metrics gave {name!r} with shape {value.shape}; it must be one value per "
                                "sample, shape (B,), or a scalar mean")
        return tf.stack([tf.reduce_sum(value), tf.cast(tf.size(value), tf.float64)])

    def _hand_over_all(self, gradients: Sequence[tf.Tensor | None]) -> list[tf.Tensor | None]:
        """Hand all buckets over, each as soon as its gradients are there; or give what comes at the end."""
        if self._at_the_end:
            return list(gradients)
        for bucket in self._plan:
            self._hand_over([(slot.index, gradients[slot.index]) for slot in bucket.slots])
        return []

    def _hand_over(self, bucket: Sequence[tuple[int, tf.Tensor | None]]) -> None:
        there = [(index, gradient) for index, gradient in bucket if gradient is not None]
        missing = [index for index, gradient in bucket if gradient is None]

        def take(*gradients: np.ndarray) -> None:
            for index in missing:
                self._take(index, None)
            for (index, _), gradient in zip(there, gradients):
                self._take(index, gradient)

        self._call(take, [gradient for _, gradient in there])

    def _call(self, function: Callable[..., None], inputs: Sequence[tf.Tensor]) -> None:
        """Have the graph call ``function``; what it raises is raised by :meth:`compute`."""
        def guarded(*arrays: np.ndarray) -> np.ndarray:
            try:
                if self._error is None:
                    function(*arrays)
            except BaseException as error:  # noqa: BLE001 - raised again where it can be handled
                self._error = error
            return np.zeros((), np.int8)

        tf.numpy_function(guarded, list(inputs), tf.int8)


def each_loss(task: Task, outputs: Any, batch: Any, count: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """What ``task`` gives: one for each sample, or their sum; and how many there are. float32."""
    losses = task.loss(outputs, batch)
    if not tf.is_tensor(losses):
        raise UserCodeError(f"Task.loss gave a {type(losses).__name__}; it must give a tensor")
    losses = tf.cast(losses, tf.float32)  # before they are added up
    if losses.shape.rank == 0:
        return losses * count, count
    if losses.shape.rank != 1:
        raise UserCodeError(f"Task.loss gave shape {losses.shape}; it must give one loss per sample, shape "
                            "(B,), or their mean, a scalar. With Keras's losses: reduction='none', then the mean "
                            "over what belongs to one sample")
    return losses, tf.cast(tf.size(losses), tf.float32)


def summed_losses(task: Task, outputs: Any, batch: Any, count: tf.Tensor) -> list[tf.Tensor]:
    """The sum of the losses, and how many there are."""
    losses, number = each_loss(task, outputs, batch, count)
    return [tf.reduce_sum(losses), number]


def account(error: tf.errors.OpError, where: str) -> UserCodeError:
    """What went wrong in a graph, in one sentence; the lines of code that it comes from go into the traceback."""
    said = [line for line in error.message.splitlines() if line.strip() and "{{node" not in line]
    return UserCodeError(f"{where} failed in its graph: {type(error).__name__}: {said[-1] if said else ''}", str(error))


def check_number(what: str, number: float, count: int) -> None:
    if number != count:
        raise UserCodeError(f"{what} for a batch of {count} samples; it must be one per sample, or their mean, a "
                            "scalar")
