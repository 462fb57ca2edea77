"""Values on their way between traced functions: in a graph by number, outside of it as lists of tensors.

::

    {3: tensor, 5: masked tensor}  --flat-->  [tensor, tensor, mask]  --Shapes.pack, in another graph-->  {3: .., 5: ..}

A value is a structure of tensors; Keras's masks go along. What is no tensor is the same in all graphs, and is not sent.
"""

from __future__ import annotations

from typing import Any, Iterable, Mapping, Sequence

import tensorflow as tf
from keras.src import backend


def flat(value: Any) -> list[tf.Tensor]:
    """The tensors of a value."""
    leaves = tf.nest.flatten(value, expand_composites=True)
    return [leaf for leaf in leaves if _dense(leaf)] + _masks(value)


def spec(tensor: tf.Tensor) -> tf.TensorSpec:
    return tf.TensorSpec(tensor.shape, tensor.dtype)


class Shapes:
    """What ``values`` look like, by their numbers, in the order in which they were given."""

    def __init__(self, values: Mapping[int, Any]):
        self._values = dict(values)
        self._counts = {key: len(flat(value)) for key, value in values.items()}

    def __contains__(self, key: int) -> bool:
        return key in self._values

    def only(self, keys: Iterable[int]) -> Shapes:
        """Those of ``keys``, in this order."""
        return Shapes({key: self._values[key] for key in keys})

    def joined(self, others: Shapes) -> Shapes:
        """These and ``others``."""
        return Shapes({**self._values, **others._values})

    @property
    def keys(self) -> list[int]:
        return list(self._values)

    @property
    def tensors(self) -> list[tf.Tensor]:
        """Those of the values that these were made of, where they are still good for something."""
        return [tensor for value in self._values.values() for tensor in flat(value)]

    @property
    def specs(self) -> list[tf.TensorSpec]:
        return list(map(spec, self.tensors))

    def split(self, tensors: Sequence[tf.Tensor]) -> dict[int, Sequence[tf.Tensor]]:
        """The tensors of each value."""
        parts, begin = {}, 0
        for key, count in self._counts.items():
            parts[key] = tensors[begin:begin + count]
            begin += count
        return parts

    def pack(self, tensors: Sequence[tf.Tensor]) -> dict[int, Any]:
        """The values that ``tensors`` are of."""
        return {key: _packed(self._values[key], list(parts)) for key, parts in self.split(tensors).items()}


def _packed(like: Any, tensors: list[tf.Tensor]) -> Any:
    masked = bool(_masks(like))
    leaves = [tensors.pop(0) if _dense(leaf) else leaf for leaf in tf.nest.flatten(like, expand_composites=True)]
    value = tf.nest.pack_sequence_as(like, leaves, expand_composites=True)
    if masked:
        value = tf.identity(value)  # a tensor that comes in twice would get a mask twice
        backend.set_keras_mask(value, tensors.pop(0))
    return value


def _masks(value: Any) -> list[tf.Tensor]:
    mask = backend.get_keras_mask(value) if tf.is_tensor(value) else None
    return [] if mask is None else [mask]


def _dense(leaf: Any) -> bool:
    return isinstance(leaf, (tf.Tensor, tf.TensorSpec))
