"""The losses of a stage's variables that have a regulariser of their own; once in a step, not for each micro-batch."""

from __future__ import annotations

from typing import Any, Callable, Sequence

import tensorflow as tf

from hvtrain.adapters.keras.traced import Traced

Regulariser = Callable[[tf.Tensor, tf.Tensor, "list[tf.Tensor]"], "dict[int, tf.Tensor]"]


def regulariser(variables: Sequence[Any], owned: Sequence[int], device: str) -> Regulariser | None:
    """A function ``(weight, scale, totals)``: it adds to ``totals``, gradients by the variables' numbers, and gives the
    losses of the ``owned`` ones times ``weight``, the step's samples. A sample's loss is multiplied by ``scale``.

    None, if no variable of theirs has a regulariser.
    """
    numbers = [number for number in owned if variables[number].regularizer is not None]
    if not numbers:
        return None
    changed: list[int] = []

    def graph(weight: tf.Tensor, scale: tf.Tensor, *before: tf.Tensor) -> list[tf.Tensor]:
        terms, totals = [], []
        with tf.device(device):
            for number, total in zip(numbers, before):
                variable = variables[number]
                with tf.GradientTape() as tape:
                    loss = tf.reduce_sum(tf.cast(variable.regularizer(variable), tf.float32))
                gradient = tape.gradient(loss, variable.value, weight * scale)
                if gradient is not None:
                    changed.append(number)
                    totals.append(total + gradient)
                terms.append(loss * weight)
        return [*terms, *totals]

    scalar = tf.TensorSpec([], tf.float32)
    sums = [tf.TensorSpec(None, variables[number].value.dtype) for number in numbers]  # 0 where there is no gradient
    traced = Traced(graph, [scalar, scalar, *sums])

    def add(weight: tf.Tensor, scale: tf.Tensor, totals: list[tf.Tensor]) -> dict[int, tf.Tensor]:
        results = traced(weight, scale, *(totals[number] for number in numbers))
        for number, total in zip(changed, results[len(numbers):]):
            totals[number] = total
        return dict(zip(numbers, results))

    return add
