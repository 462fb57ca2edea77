"""What backward keeps of forward, read from a traced graph."""

from __future__ import annotations

from typing import Any, Sequence

import tensorflow as tf

_SAME = frozenset({"Identity", "Reshape", "Squeeze", "ExpandDims", "StopGradient", "PreventGradient"})
"""Operations whose result lies in the memory of their first input."""
_LASTING = frozenset({"ReadVariableOp", "Const", "Placeholder", "Shape", "ShapeN", "Size", "Rank", "Timestamp"})
"""Operations whose results are there anyway, or are no activations."""


def size(tensor: Any) -> int:
    """Bytes of a tensor of known shape; 0 for what has none, such as lists that loops keep."""
    if not tf.is_tensor(tensor) and not isinstance(tensor, tf.Variable):
        return 0
    elements = tensor.shape.num_elements() if tensor.shape.rank is not None else None
    return elements * tensor.dtype.size if elements and tensor.dtype.is_numpy_compatible else 0


def saved_bytes(graph: Any, marks: Sequence[int]) -> list[int]:
    """Bytes that backward takes of what each link has made or taken, each tensor for the first link that needs it.

    ``marks`` has the number of ``graph``'s operations after each link's forward pass; what comes after the last is
    backward.
    """
    operations = graph.get_operations()
    place = {operation: number for number, operation in enumerate(operations)}
    kept: dict[Any, Any] = {}
    for operation in operations[marks[-1]:]:
        for tensor in operation.inputs:
            if place[tensor.op] < marks[-1]:
                origin = _origin(tensor)
                if origin.op.type not in _LASTING or _batch(graph, origin):
                    kept[origin.ref()] = origin
    # The first link that takes or makes it.
    found = [0] * len(marks)
    for origin in kept.values():
        users = [place[origin.op], *(place[user] for user in _users(origin) if place[user] < marks[-1])]
        first = min(number for number, mark in enumerate(marks) if any(user < mark for user in users))
        found[first] += size(origin)
    return found


def _origin(tensor: Any) -> Any:
    while tensor.op.type in _SAME or (tensor.op.type == "Cast" and tensor.op.inputs[0].op.type == "ReadVariableOp"):
        tensor = tensor.op.inputs[0]
    return tensor


def _batch(graph: Any, tensor: Any) -> bool:
    """Whether it is an argument of the graph, and no variable."""
    return tensor.op.type == "Placeholder" and tensor.dtype != tf.resource


def _users(tensor: Any) -> list[Any]:
    return list(tensor.consumers())
