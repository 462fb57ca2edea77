"""What ``model.fit`` takes as data, as sources of samples that can be picked one by one."""

from __future__ import annotations

from typing import Any, Callable, Mapping

import keras
import numpy as np
import tensorflow as tf

from hvtrain.data import as_source
from hvtrain.data.sources import Source
from hvtrain.errors import UsageError, UserCodeError


class Arrays:
    """Samples of arrays in tuples, lists and dictionaries: a batch has the same structure.

    Args:
        parts: x, y and perhaps weights, each an array or arrays in a structure, all of the same length.
    """

    def __init__(self, *parts: Any):
        self._parts = parts
        lengths = {len(leaf) for part in parts for leaf in leaves(part)}
        if len(lengths) != 1:
            raise UsageError(f"x, y and sample_weight must have equally many samples; theirs are {sorted(lengths)}")
        self._length = lengths.pop()

    def __len__(self) -> int:
        return self._length

    def __getitems__(self, indices: list[int]) -> tuple[Any, ...]:
        rows = np.asarray(indices)
        return tuple(mapped(lambda leaf: leaf.take(rows, axis=0), part) for part in self._parts)


class Nothing:
    """No samples: an evaluation of them only has the ranks agree on how to go on."""

    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: int) -> Any:
        raise IndexError(index)


def samples(x: Any, y: Any = None, sample_weight: Any = None, class_weight: Mapping[int, float] | None = None,
            name: str = "x") -> Source:
    """The source of what ``fit`` was given as data.

    Raises:
        UsageError, SourceError: it cannot be used, or what was given together does not fit.
    """
    if x is None:
        raise UsageError(f"{name} is missing: hvtrain.keras.fit(model, x=x_train, y=y_train, ...)")
    if isinstance(x, tf.data.Dataset):
        raise UsageError(f"{name} is a tf.data.Dataset, which gives its samples in an order of its own only. hvtrain "
                         "picks each sample by its number, so that none is lost or used twice whatever becomes of the "
                         "workers. Give the arrays that it is made of, a keras.utils.PyDataset, or an object with "
                         "__len__ and __getitem__")
    if not is_structure(x):
        if y is not None or sample_weight is not None or class_weight is not None:
            raise UsageError(f"{name} is a {type(x).__name__}, which brings its own targets and weights; leave out y, "
                             "sample_weight and class_weight")
        return as_source(x)
    if y is None:
        raise UsageError(f"{name} is arrays, so the targets are needed as well: y=...")
    if sample_weight is not None and class_weight is not None:
        raise UsageError("sample_weight and class_weight exclude each other, as in model.fit")
    parts = [mapped(array, x), mapped(array, y)]
    if class_weight is not None:
        sample_weight = class_weights(parts[1], class_weight)
    return as_source(Arrays(*parts, *([mapped(array, sample_weight)] if sample_weight is not None else [])))


def validation(given: Any) -> Source | None:
    """The source of ``validation_data``; None if there is none."""
    if given is None:
        return None
    if isinstance(given, (tuple, list)):
        if len(given) not in (2, 3):
            raise UsageError(f"validation_data has {len(given)} parts; it must be (x, y), (x, y, sample_weight), or "
                             "a data set")
        return samples(*given, name="validation_data")
    return samples(given, name="validation_data")


def unpacked(batch: Any) -> tuple[Any, Any, Any]:
    """Inputs, targets and weights of a batch; None for weights that it has not."""
    if not isinstance(batch, (tuple, list)) or len(batch) not in (2, 3):
        raise UserCodeError(f"a batch is {type(batch).__name__}"
                            + (f" of {len(batch)}" if isinstance(batch, (tuple, list)) else "")
                            + "; each sample must be (x, y) or (x, y, weight)")
    return batch[0], batch[1], batch[2] if len(batch) == 3 else None


def class_weights(targets: Any, weights: Mapping[int, float]) -> np.ndarray:
    """The weight of each sample by its class, shape ``(N,)``, 1 for classes that ``weights`` does not name."""
    if not isinstance(targets, np.ndarray) or targets.ndim > 2:
        raise UsageError("class_weight needs one output with integer or one-hot targets; give sample_weight instead")
    classes = targets.argmax(1) if targets.ndim == 2 and targets.shape[1] > 1 else targets.reshape(-1).astype(np.int64)
    table = np.ones(max([int(classes.max()), *weights]) + 1, keras.backend.floatx())
    for number, weight in weights.items():
        table[number] = weight
    return table[classes]


def array(leaf: Any) -> np.ndarray:
    """As Keras does it: floating-point numbers in keras.config.floatx()."""
    result = np.asarray(leaf)
    floating = np.issubdtype(result.dtype, np.floating) and str(result.dtype) != keras.config.floatx()
    return result.astype(keras.config.floatx()) if floating else result


def is_structure(value: Any) -> bool:
    """Whether it is arrays, or tuples, lists and dictionaries of them."""
    if isinstance(value, Mapping):
        return all(map(is_structure, value.values()))
    if isinstance(value, (tuple, list)):
        return all(is_structure(inner) or isinstance(inner, (int, float)) for inner in value)
    others = type(value).__module__.partition(".")[0] in ("pandas", "torch")
    return isinstance(value, (np.ndarray, tf.Tensor)) or (others and hasattr(value, "__array__"))


def mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """``value`` with ``function`` applied to each of its arrays."""
    if isinstance(value, Mapping):
        return {key: mapped(function, inner) for key, inner in value.items()}
    if isinstance(value, (tuple, list)) and not all(isinstance(inner, (int, float)) for inner in value):
        return tuple(mapped(function, inner) for inner in value)
    return function(value)


def leaves(value: Any) -> list[Any]:
    """The arrays in ``value``."""
    if isinstance(value, Mapping):
        return [leaf for inner in value.values() for leaf in leaves(inner)]
    if isinstance(value, tuple):
        return [leaf for inner in value for leaf in leaves(inner)]
    return [value]
