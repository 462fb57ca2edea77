"""A function and its backward pass as two functions, that are called at different times and keep nothing in between.

::

    forward(arguments)            -> [results ..., kept ...]      what backward takes of forward's tensors is returned
    backward(arguments, kept ...) -> [results ...]                and given again

Both are traced at once, backward while forward's tapes are there, as a function within it: what that captures of
forward is what must be kept.
"""

from __future__ import annotations

from typing import Any, Callable, Sequence

import tensorflow as tf

from hvtrain.adapters.keras.traced import Traced


class Halves:
    """``forward(backward_of, *tensors)``, traced for arguments of ``signature``; it gives a list of tensors.

    On its way it calls ``backward_of(function, signature)`` once, with what backward does.
    """

    def __init__(self, forward: Callable[..., list[tf.Tensor]], signature: Sequence[tf.TensorSpec]):
        def both(*tensors: tf.Tensor) -> list[tf.Tensor]:
            results = forward(self._trace_backward, *tensors)
            self._results = len(results)
            graph = tf.compat.v1.get_default_graph()
            outer = {id(inner) for _, inner in graph.captures}
            self._kept = [tensor for tensor in self._captured
                          if tf.is_symbolic_tensor(tensor) and id(tensor) not in outer]
            return [*results, *self._kept]

        self._forward = Traced(both, signature)
        outer = {id(inner): there for there, inner in self._forward.graph.captures}
        places = {id(tensor): place for place, tensor in enumerate(self._kept)}
        # Of each thing that backward captures: its place among what is kept, or itself, where it is there anyway.
        self._sources = [places.get(id(tensor), outer.get(id(tensor), tensor)) for tensor in self._captured]
        del self._captured, self._kept

    def _trace_backward(self, function: Callable[..., list[tf.Tensor]], signature: Sequence[tf.TensorSpec]) -> None:
        traced = tf.function(function, input_signature=list(signature), autograph=False)
        self._backward = traced.get_concrete_function()
        self._captured = list(self._backward.captured_inputs)

    @property
    def graphs(self) -> tuple[Any, Any]:
        return self._forward.graph, self._backward.graph

    def forward(self, tensors: Sequence[tf.Tensor]) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """The results, and what :meth:`backward` needs."""
        made = self._forward(*tensors)
        return made[:self._results], made[self._results:]

    def backward(self, tensors: Sequence[tf.Tensor], kept: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        return self._backward._call_flat(  # as of Traced: what calling it comes down to (2.21)
            list(tensors), [kept[source] if isinstance(source, int) else source for source in self._sources])
