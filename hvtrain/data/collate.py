"""Makes one batch of a list of samples, without knowing a framework: torch is used only if it is there."""

from __future__ import annotations

import numbers
import sys
from typing import Any, Mapping, Sequence

import numpy as np

from hvtrain.errors import UserCodeError


class CollateError(UserCodeError, TypeError):
    """Samples do not fit together. ``position`` is the offending sample's place in the batch."""

    def __init__(self, message: str, position: int):
        self.position = position
        super().__init__(message)


def collate(samples: Sequence[Any]) -> Any:
    """Stacks ``samples`` along a new first axis, inside tuples, lists and mappings too.

    numpy arrays and numbers become numpy arrays (Python's ``int`` int64, ``float`` float32, ``bool`` bool),
    torch tensors become a tensor, strings and bytes stay a list. Raises CollateError where the samples
    differ in kind, shape or keys, or hold something else.
    """
    if not len(samples):
        raise ValueError("collate needs at least one sample")
    return _collate(samples, "sample")


def _collate(items: Sequence[Any], path: str) -> Any:
    first = items[0]
    if isinstance(first, np.ndarray):
        _same_kind(items, np.ndarray, path)
        _same_shape(items, path)
        _no_objects(first, path)
        # Faster than np.stack, which makes a new view of every item first.
        return np.concatenate(items).reshape(len(items), *first.shape) if first.ndim else np.array(items)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(first, torch.Tensor):
        _same_kind(items, torch.Tensor, path)
        _same_shape(items, path)
        return torch.stack(list(items))
    if isinstance(first, (str, bytes)):
        _same_kind(items, (str, bytes), path)
        return list(items)
    if isinstance(first, (numbers.Number, np.generic)):
        return _numbers(items, path)
    if isinstance(first, Mapping):
        return _mappings(items, path)
    if isinstance(first, (tuple, list)):
        return _sequences(items, path)
    raise CollateError(
        f"{path} is {_kind(first)}, which cannot be stacked. Return numbers, numpy arrays, torch tensors, "
        "strings, or tuples, lists and dicts of them.", 0)


def _numbers(items: Sequence[Any], path: str) -> np.ndarray:
    _same_kind(items, (numbers.Number, np.generic), path)
    made = np.array(items)
    _no_objects(made, path)
    # float64 would make a model's float32 arithmetic fail or crawl; a numpy scalar's dtype is a choice.
    return made.astype(np.float32) if made.dtype == np.float64 and float in set(map(type, items)) else made


def _mappings(items: Sequence[Any], path: str) -> dict[Any, Any]:
    _same_kind(items, Mapping, path)
    keys = items[0].keys()
    for position, item in enumerate(items):
        if item.keys() != keys:
            raise CollateError(f"{path} has the keys {sorted(map(str, item))}, others in the batch have "
                               f"{sorted(map(str, keys))}. Return the same keys for every sample.", position)
    return {key: _collate([item[key] for item in items], f"{path}[{key!r}]") for key in keys}


def _sequences(items: Sequence[Any], path: str) -> Any:
    first = items[0]
    _same_kind(items, (tuple, list), path)
    for position, item in enumerate(items):
        if len(item) != len(first):
            raise CollateError(f"{path} has {len(item)} parts, others in the batch have {len(first)}. "
                               "Return equally many for every sample, or pad a sequence to one length as an "
                               "array.", position)
    parts = [_collate(column, f"{path}[{place}]") for place, column in enumerate(zip(*items))]
    if isinstance(first, list):
        return parts
    return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)  # a namedtuple stays one


def _same_kind(items: Sequence[Any], kind: Any, path: str) -> None:
    for position, item in enumerate(items):
        if not isinstance(item, kind):
            raise CollateError(f"{path} is {_kind(item)}, others in the batch are {_kind(items[0])}. "
                               "Return the same kind for every sample.", position)


def _same_shape(items: Sequence[Any], path: str) -> None:
    if len({item.shape for item in items}) == 1:
        return
    expected = tuple(items[0].shape)
    position = next(place for place, item in enumerate(items) if tuple(item.shape) != expected)
    raise CollateError(
        f"{path} has shape {tuple(items[position].shape)}, others in the batch have {expected}. "
        "Resize, crop or pad to one shape.", position)


def _no_objects(array: np.ndarray, path: str) -> None:
    if array.dtype.hasobject:
        raise CollateError(f"{path} does not fit a numeric array (its dtype would be {array.dtype}). "
                           "Return numbers of at most 64 bits.", 0)


def _kind(item: Any) -> str:
    return "None" if item is None else f"of type {type(item).__module__}.{type(item).__qualname__}"
