"""Samples of a keras.utils.PyDataset, which is indexed by batches: picked one by one, each where it belongs."""

from __future__ import annotations

import logging
import threading

import numpy as np
import pytest

from hvtrain.data import Loader, as_source
from hvtrain.data.pydataset import PyDatasetSource
from hvtrain.data.sources import SampleError, SourceError


class PyDataset:
    """As much of keras.utils.PyDataset as matters here, known by its module and name; without importing TensorFlow."""

    __module__ = "keras.src.trainers.data_adapters.py_dataset_adapter"

    @property
    def num_batches(self):
        if not hasattr(self, "__len__"):
            raise NotImplementedError
        return len(self)


class Squares(PyDataset):
    __module__ = "tests"

    def __init__(self, samples=10, size=4):
        self.samples, self.size, self.loaded = samples, size, []

    def __len__(self):
        return -(-self.samples // self.size)

    def __getitem__(self, number):
        self.loaded.append(number)
        rows = np.arange(number * self.size, min(self.samples, (number + 1) * self.size))
        return {"x": rows[:, None].astype("f4"), "again": [rows]}, rows**2


def test_any_samples_in_any_order_over_batches():
    source = as_source(Squares())
    assert isinstance(source, PyDatasetSource) and len(source) == 10
    for wanted in ([9], [3, 4], [8, 0, 5, 5, 1, 9], list(range(10))):
        inputs, squares = source.fetch(np.array(wanted), seed=0, epoch=0)
        assert inputs["x"].tolist() == [[index] for index in wanted]
        assert inputs["again"][0].tolist() == wanted and squares.tolist() == [index**2 for index in wanted]


def test_in_order_every_batch_is_loaded_once():
    data = Squares(12, 4)
    source, data.loaded[:] = PyDatasetSource(data), []
    for start in range(0, 12, 3):
        source.fetch(np.arange(start, start + 3))
    assert data.loaded == [0, 1, 2]


def test_threads_do_not_take_each_others_batch():
    source, threads = as_source(Squares(1000, 10)), threading.active_count()
    rows = [np.random.default_rng(number).permutation(1000)[:40] for number in range(50)]
    with Loader(source, workers=4) as loader:
        for wanted, (_, squares) in zip(rows, loader.batches((0, each) for each in rows)):
            assert squares.tolist() == (wanted**2).tolist()
    assert threading.active_count() <= threads


class Ragged(Squares):
    def __getitem__(self, number):
        return np.zeros(3 if number == 1 else 4)


class Failing(Squares):
    def __getitem__(self, number):
        if number == 1:
            raise OSError("no such file")
        return super().__getitem__(number)


class Endless(PyDataset):
    def __getitem__(self, number):
        return np.zeros(4)


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(SourceError, match="Endless has no end.*__len__"):
        as_source(Endless())
    with pytest.raises(SourceError, match="has no batches"):
        as_source(Squares(0))
    with pytest.raises(SourceError, match="Batch 1 of the PyDataset has 3 samples, expected 4"):
        as_source(Ragged(12)).fetch(np.arange(12))
    with pytest.raises(SourceError, match="3 samples in its first batch and 4 in its last"):
        as_source(type("Growing", (Ragged,), {"__getitem__": lambda self, n: np.zeros(3 + n)})(8))
    with pytest.raises(SourceError, match="arrays of one length, got lengths.*2.*3"):
        as_source(type("Uneven", (Ragged,), {"__getitem__": lambda self, n: (np.zeros(3), np.zeros(2))})(8))
    with pytest.raises(SampleError, match="Batch 1 of the PyDataset could not be loaded: OSError: no such file"):
        as_source(Failing()).fetch(np.arange(10))


def test_a_shuffle_of_its_own_is_not_called_and_that_is_said(caplog):
    with caplog.at_level(logging.WARNING):
        as_source(type("Shuffled", (Squares,), {"__module__": "mine", "on_epoch_end": lambda self: 1 / 0})())
    assert "Shuffled.on_epoch_end is not called" in caplog.text
