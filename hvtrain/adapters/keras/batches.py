"""Batches as tensors, and functions of a batch that are traced as rarely as may be.

::

    first batch   (32, 28, 28)     traced for   (any, 28, 28)
    (32, 28, 28)  (7, 28, 28)      the same
    (32, 28, 40)                   traced for   (any, 28, any), once
    (9, 28, 51)                    the same

Which trace a batch goes through depends on the first batch and on itself alone, not on what came between: a worker that
replaces another computes in the same graphs, and so to the same bits.
"""

from __future__ import annotations

from typing import Any, Callable, Sequence

import numpy as np
import tensorflow as tf

from hvtrain.adapters.keras.traced import Traced
from hvtrain.errors import UserCodeError


def tensors(batch: Any) -> Any:
    """A batch with every array in it as a TensorFlow tensor; a list of strings is one array.

    Raises:
        UserCodeError: there is something in it that makes no dense tensor.
    """
    if isinstance(batch, dict):
        return {name: tensors(part) for name, part in batch.items()}
    if isinstance(batch, (tuple, list)) and not _strings(batch):
        parts = [tensors(part) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    if isinstance(batch, tf.Tensor):
        return batch
    if tf.is_tensor(batch):
        raise UserCodeError(f"a batch has a {type(batch).__name__}; only dense tensors and arrays can be split into "
                            "micro-batches and counted. Pad it: to_tensor(), or tf.sparse.to_dense")
    try:
        return tf.convert_to_tensor(np.asarray(batch))
    except (TypeError, ValueError) as error:
        raise UserCodeError(f"a batch has a {type(batch).__name__}, which makes no tensor: {error}") from error


def _strings(batch: Sequence[Any]) -> bool:
    return bool(len(batch)) and all(isinstance(part, (str, bytes)) for part in batch)


class AnyBatch:
    """``function(batch, *others)``, traced once for batches of every size, and once more for each set of further
    extents in which batches differ from the first one of their kind.

    Args:
        others: what the further arguments are, which must come as tensors.
        inspect: is shown every new graph, before it is used for the first time.
    """

    def __init__(self, function: Callable[..., Any], others: Sequence[tf.TensorSpec],
                 inspect: Callable[[Any], None] = lambda graph: None):
        self._function, self._others, self._inspect = function, others, inspect
        self._kinds: list[tuple[Any, list[tuple[int, ...]], dict[Any, Any]]] = []

    def __call__(self, batch: Any, *others: tf.Tensor) -> Any:
        parts = tf.nest.flatten(batch)
        return self.traced_for(batch, parts)(*parts, *others)

    @property
    def traces(self) -> int:
        """How many times the function has been traced."""
        return sum(len(traced) for _, _, traced in self._kinds)

    def traced_for(self, batch: Any, parts: Sequence[tf.Tensor]) -> Any:
        """What is called for ``batch``, whose tensors are ``parts``."""
        shapes = [tuple(part.shape) for part in parts]
        kind = tf.nest.pack_sequence_as(batch, [(part.dtype, len(shape)) for part, shape in zip(parts, shapes)])
        extents = [shape[1:] for shape in shapes]
        for known, first, traced in self._kinds:
            if known == kind:
                break
        else:
            first, traced = extents, {}
            self._kinds.append((kind, first, traced))
        differing = tuple(tuple(a != b for a, b in zip(mine, its)) for mine, its in zip(extents, first))
        if differing not in traced:
            specs = [tf.TensorSpec([None, *(None if free else extent for extent, free in zip(part.shape[1:], ones))]
                                   if part.shape.rank else [], part.dtype)
                     for part, ones in zip(parts, differing)]
            traced[differing] = self._trace(tf.nest.pack_sequence_as(batch, specs))
        return traced[differing]

    def _trace(self, batch: Any) -> Any:
        """``batch``: what it looks like."""
        traced = Traced(self._function, [batch, *self._others])
        self._inspect(traced.graph)
        return traced
