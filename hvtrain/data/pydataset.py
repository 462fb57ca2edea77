"""Samples of a ``keras.utils.PyDataset``, which is indexed by batches of its own."""

from __future__ import annotations

import logging
import threading
from typing import Any, Callable, Iterator

import numpy as np

from hvtrain.data.sources import SourceError, failure

log = logging.getLogger(__name__)


class PyDatasetSource:
    """The samples of ``dataset``, so that they can be shuffled and split over workers one by one.

    ::

        dataset[0]      dataset[1]      dataset[2]        all of one size, the last may be smaller
        0  1  2  3      4  5  6  7      8  9              samples

    The first and the last batch are loaded to learn their sizes. To fetch samples, every batch that holds one of them
    is loaded whole, and the last one is kept (for each thread): in order this costs nothing, shuffled it costs up to a
    batch per sample. Where loading is slow, give an object that is indexed by sample, or set data.shuffle: false.
    ``on_epoch_end`` is not called: the order of an epoch is hvtrain's.

    Raises:
        SourceError: the number of batches is not known, or they are not all of one size.
    """

    def __init__(self, dataset: Any):
        self._dataset, self._kept = dataset, threading.local()
        try:
            self._batches = dataset.num_batches
        except NotImplementedError:
            self._batches = None
        if not self._batches:
            raise SourceError(f"The PyDataset {type(dataset).__name__} has "
                              f"{'no batches' if self._batches == 0 else 'no end'}: hvtrain visits every sample "
                              "exactly "
                              "once an epoch, so its __len__ must give the number of batches.")
        self._size = _length(self._load(0), 0)
        last = _length(self._load(self._batches - 1), self._batches - 1)
        if last > self._size or not last:
            raise SourceError(f"The PyDataset {type(dataset).__name__} has {self._size} samples in its first batch and "
                              f"{last} in its last; all batches must have one size, only the last may be smaller.")
        self._length = (self._batches - 1) * self._size + last
        for hook in ("on_epoch_end", "on_epoch_begin"):
            owner = next((base for base in type(dataset).__mro__ if hook in vars(base)), None)
            if owner is not None and owner.__module__.split(".")[0] != "keras":
                log.warning("%s.%s is not called: the order of samples is hvtrain's (data.shuffle)",
                            type(dataset).__name__, hook)

    def __len__(self) -> int:
        return self._length

    def fetch(self, indices: np.ndarray, *, seed: int = 0, epoch: int = 0) -> Any:
        """The batch of the samples at ``indices``, in their order; ``seed`` and ``epoch`` have no influence.

        Raises:
            SampleError: the data set raised.
            SourceError: a batch has another size than the first.
        """
        numbers, places = np.divmod(indices, self._size)
        pieces, sources = [], []
        for number in np.unique(numbers):
            mine = np.flatnonzero(numbers == number)
            batch = self._load(int(number))
            length, expected = _length(batch, number), min(self._size, self._length - int(number) * self._size)
            if length != expected:
                raise SourceError(f"Batch {number} of the PyDataset has {length} samples, expected {expected}; all "
                                  "batches must have one size, only the last may be smaller.")
            pieces.append(_map(batch, lambda array, rows=places[mine]: array.take(rows, axis=0)))
            sources.append(mine)
        order = np.argsort(np.concatenate(sources), kind="stable")
        return _join(pieces, order)

    def _load(self, number: int) -> Any:
        kept = getattr(self._kept, "batch", None)
        if kept is not None and kept[0] == number:
            return kept[1]
        try:
            batch = _map(self._dataset[number], np.asarray)
        except Exception as error:
            raise failure(error, f"Batch {number} of the PyDataset could not be loaded") from error
        self._kept.batch = number, batch
        return batch


def _map(batch: Any, function: Callable[[Any], Any]) -> Any:
    """``function`` of every array in ``batch``; what is None is left out of tuples, as an absent sample weight."""
    if isinstance(batch, dict):
        return {name: _map(part, function) for name, part in batch.items()}
    if isinstance(batch, (tuple, list)):
        return tuple(_map(part, function) for part in batch if part is not None)
    return function(batch)


def _arrays(batch: Any) -> Iterator[np.ndarray]:
    if isinstance(batch, (dict, tuple)):
        for part in batch.values() if isinstance(batch, dict) else batch:
            yield from _arrays(part)
    else:
        yield batch


def _length(batch: Any, number: int) -> int:
    lengths = {array.shape[0] if array.ndim else None for array in _arrays(batch)}
    if len(lengths) != 1 or None in lengths:
        raise SourceError(f"Batch {number} of the PyDataset must consist of arrays of one length, got lengths "
                          f"{sorted(map(str, lengths))}.")
    return lengths.pop()


def _join(pieces: list[Any], order: np.ndarray) -> Any:
    first = pieces[0]
    if isinstance(first, dict):
        return {name: _join([piece[name] for piece in pieces], order) for name in first}
    if isinstance(first, tuple):
        return tuple(_join([piece[place] for piece in pieces], order) for place in range(len(first)))
    return np.concatenate(pieces).take(order, axis=0)
