"""The traced parts of a step: forward and backward of a micro-batch, the optimizer's update, an evaluation batch.

::

    compute    seeds -> forward -> losses -> backward -+-> [g5 g4] ------> taken ---> reduced, while backward goes on
                           |                           +-> [g3 g2 g1] ---> taken
                           +-> "forward" is reached    +-> [g0] ---------> taken
    update     reduced gradients -> optimizer -> averages

What is handed over in the middle of ``compute`` goes by ``tf.numpy_function``; with ``jit_compile`` all of it comes
at the end.
"""

from __future__ import annotations

from typing import Any, Callable, Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

from hvtrain import probe
from hvtrain.adapters.keras.variables import Variables
from hvtrain.comm.flat import Plan
from hvtrain.errors import UserCodeError
from hvtrain.task import Task

Take = Callable[[int, "np.ndarray | None"], None]


def tensors(batch: Any) -> Any:
    """A batch with every array in it as a TensorFlow tensor."""
    return tf.nest.map_structure(
        lambda part: part if isinstance(part, tf.Tensor) else tf.convert_to_tensor(np.asarray(part)), batch)


def _signature(batch: Any) -> Any:
    """Of any number of samples, and of any extent where a batch has come that differs."""
    return tf.nest.map_structure(lambda part: tf.TensorSpec([None, *part.shape[1:]], part.dtype)
                                 if part.shape.rank else tf.TensorSpec([], part.dtype), batch)


class _AnyBatch:
    """A traced function of a batch, traced once for batches of every size."""

    def __init__(self, function: Callable[..., Any], others: Sequence[tf.TensorSpec]):
        self._function, self._others = function, others
        self._traced: list[tuple[Any, Any]] = []

    def __call__(self, batch: Any, *others: Any) -> Any:
        kind = _signature(batch)
        for known, traced in self._traced:
            if known == kind:
                return traced(batch, *others)
        traced = tf.function(self._function, input_signature=[kind, *self._others])
        self._traced.append((kind, traced))
        return traced(batch, *others)


class Steps:
    """Traces what ``task`` says about ``model``.

    Args:
        take: called with the index of each trainable variable and its gradient, or None, from any thread.
        jit: compile forward and backward with XLA.
    """

    def __init__(self, task: Task, model: keras.Model, variables: Variables, optimizer: keras.optimizers.Optimizer,
                 plan: Plan, take: Take, averages: Sequence[tuple[tf.Variable, tf.Variable]], jit: bool):
        self._task, self._model, self._optimizer = task, model, optimizer
        self._trainable = list(variables.trainable.values())
        self._seeds, self._plan, self._take, self._averages, self._jit = variables.seeds, plan, take, averages, jit
        self._error: BaseException | None = None
        number = tf.TensorSpec([], tf.float32)
        self._compute = _AnyBatch(self._compute_graph, [
            number, number, number, tf.TensorSpec([len(self._seeds), 2], tf.uint32)])
        self._evaluate = _AnyBatch(self._evaluate_graph, [number])
        self._update = tf.function(self._update_graph)

    def compute(self, batch: Any, count: int, share: float, factor: float, seeds: np.ndarray) -> float:
        """Forward and backward; gradients of ``share * factor`` times the batch's summed loss are taken on the way.

        ``seeds`` are those of the random generators, shape (G, 2), uint32. Returns the summed loss, regularisation
        included. Raises whatever ``take`` raised.
        """
        self._error = None
        try:
            value = self._compute(batch, np.float32(count), np.float32(share), np.float32(factor), seeds)
        except tf.errors.OpError:
            if self._error is None:
                raise
        if self._error is not None:
            raise self._error
        return float(value)

    def update(self, gradients: Sequence[np.ndarray], decay: float) -> None:
        """Take an optimizer step, and move the averages towards the weights by ``1 - decay``."""
        self._update([tf.convert_to_tensor(g) for g in gradients], np.float32(decay))

    def trace_update(self) -> None:
        """Trace :meth:`update`, without doing it."""
        self._update.get_concrete_function([tf.TensorSpec(v.shape, v.dtype) for v in self._trainable],
                                           tf.TensorSpec([], tf.float32))

    def evaluate(self, batch: Any, count: int) -> dict[str, float]:
        """Loss and metrics of a batch, each summed over its samples."""
        return {name: float(value) for name, value in self._evaluate(batch, np.float32(count)).items()}

    # Graphs ----------------------------------------------------------------------------------------------
    def _compute_graph(self, batch: Any, count: tf.Tensor, share: tf.Tensor, factor: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        for number, variable in enumerate(self._seeds):
            variable.assign(seeds[number])
        inner = tf.function(self._backward, jit_compile=True) if self._jit else self._backward
        value, gradients = inner(batch, count, share, factor)
        if self._jit:
            self._call(lambda value: probe.reached("forward"), [value])
        for bucket in self._plan:
            self._hand_over([(slot.index, gradients[slot.index]) for slot in bucket.slots])
        return value

    def _backward(self, batch: Any, count: tf.Tensor, share: tf.Tensor, factor: tf.Tensor) -> tuple[tf.Tensor, list]:
        with tf.GradientTape() as tape:
            value = tf.reduce_sum(self._losses(self._outputs(batch, True), batch, count))
            if self._model.losses:  # of the whole batch; every rank adds its share
                value += tf.cast(tf.add_n(self._model.losses), tf.float32) * count
            if not self._jit:
                self._call(lambda value: probe.reached("forward"), [value])
            scaled = value * share * factor
        gradients = tape.gradient(scaled, [variable.value for variable in self._trainable])
        return value, [None if g is None else tf.convert_to_tensor(g) for g in gradients]

    def _update_graph(self, gradients: Sequence[tf.Tensor], decay: tf.Tensor) -> None:
        self._optimizer.apply(list(gradients), self._trainable)
        for average, variable in self._averages:
            average.assign_add((variable.value - average) * (1 - decay))

    def _evaluate_graph(self, batch: Any, count: tf.Tensor) -> dict[str, tf.Tensor]:
        outputs = self._outputs(batch, False)
        losses = self._losses(outputs, batch, count)
        values = {"loss": losses if losses.shape.rank else losses / count}  # one for all: the mean again
        values |= {name: tf.convert_to_tensor(value) for name, value in self._task.metrics(outputs, batch).items()}
        return {name: self._sum(name, value, count) for name, value in values.items()}

    # Parts of them -----------------------------------------------------------------------------------------
    def _outputs(self, batch: Any, training: bool) -> Any:
        inputs = self._task.inputs(batch)
        if isinstance(inputs, dict) and not isinstance(self._model, keras.Sequential) and not _takes_dict(self._model):
            return self._model(**inputs, training=training)
        return self._model(inputs, training=training)

    def _losses(self, outputs: Any, batch: Any, count: tf.Tensor) -> tf.Tensor:
        """One for each sample, or their sum."""
        losses = self._task.loss(outputs, batch)
        if not tf.is_tensor(losses):
            raise UserCodeError(f"Task.loss gave a {type(losses).__name__}; it must give a tensor")
        losses = tf.cast(losses, tf.float32)  # before they are added up
        if losses.shape.rank == 0:
            return losses * count
        if losses.shape.rank != 1:
            raise UserCodeError(f"Task.loss gave shape {tuple(losses.shape)}; it must give one loss per sample, shape "
                                "(B,), or their mean, a scalar. With Keras's losses: reduction='none', then the mean "
                                "over what belongs to one sample")
        tf.debugging.assert_equal(tf.shape(losses)[0], tf.cast(count, tf.int32),
                                  "Task.loss gave another number of losses than there are samples in the batch")
        return losses

    def _sum(self, name: str, value: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
        value = tf.cast(value, tf.float64)
        if value.shape.rank == 0:
            return value * tf.cast(count, tf.float64)
        if value.shape.rank != 1:
            raise UserCodeError(f"Task.metrics gave {name!r} with shape {tuple(value.shape)}; it must be one value per "
                                "sample, shape (B,), or a scalar mean")
        tf.debugging.assert_equal(tf.shape(value)[0], tf.cast(count, tf.int32),
                                  f"Task.metrics gave another number of values for {name!r} than there are samples")
        return tf.reduce_sum(value)

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


def _takes_dict(model: keras.Model) -> bool:
    """Whether a functional model was built on a dictionary of inputs."""
    return isinstance(getattr(model, "_inputs_struct", None), dict)
