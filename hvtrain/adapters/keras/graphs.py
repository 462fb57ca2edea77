"""What a traced graph does beside computing: which variables it changes, and where its random numbers come from."""

from __future__ import annotations

from typing import Any, Iterable, Iterator, Mapping

import tensorflow as tf
# TensorFlow's own record of what a graph only reads; it sees through conditions, loops and inner functions (2.21).
from tensorflow.python.framework.auto_control_deps_utils import get_read_only_resource_input_indices_graph

from hvtrain.errors import UserCodeError

_UNSEEDED = frozenset({
    "Multinomial", "ParameterizedTruncatedNormal", "RandomGamma", "RandomPoisson", "RandomPoissonV2", "RandomShuffle",
    "RandomStandardNormal", "RandomUniform", "RandomUniformInt", "TruncatedNormal"})
"""Operations that keep the state of their random numbers to themselves (tf.random.uniform and its like)."""


def changed(graph: Any, variables: Mapping[str, Any]) -> list[str]:
    """The names of those of the model's ``variables`` that running ``graph`` changes.

    Raises:
        UserCodeError: it changes a variable that is none of them.
    """
    readable = set(get_read_only_resource_input_indices_graph(graph))
    inner = [part for number, part in enumerate(graph.inputs) if part.dtype == tf.resource and number not in readable]
    outer = {id(there): handle for handle, there in graph.captures}
    written = {id(outer[id(part)]) for part in inner if id(part) in outer}
    names = {id(variable.value.handle): name for name, variable in variables.items()}
    for variable in graph.variables:
        if id(variable.handle) in written and id(variable.handle) not in names:
            raise UserCodeError(
                f"the forward pass changes the variable {variable.name!r}, which does not belong to the model's, so "
                "that it would be neither shared nor saved. Make it by self.add_weight(..., trainable=False) in a "
                "layer of the model")
    return [name for handle, name in names.items() if handle in written]


def check_randomness(graph: Any) -> None:
    """Raise UserCodeError if random numbers are drawn whose state cannot be set: a step done again would differ."""
    for operation in _operations(graph):
        if operation in _UNSEEDED:
            raise UserCodeError(
                f"the training step draws random numbers by tf.random ({operation}), whose state cannot be set, so "
                "that a step that is done again would draw others. Use keras.random with a keras.random.SeedGenerator "
                "that belongs to a layer, or the stateless functions of tf.random with the seed that is given to you")


def _operations(graph: Any) -> Iterator[str]:
    definition = graph.as_graph_def()
    bodies: Iterable[Any] = [definition.node, *(function.node_def for function in definition.library.function)]
    return (node.op for body in bodies for node in body)
