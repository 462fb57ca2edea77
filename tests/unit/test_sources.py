"""What tasks may return as data, and how samples become batches."""

from __future__ import annotations

import subprocess
import sys
from collections import namedtuple

import numpy as np
import pytest

from hvtrain.data.collate import CollateError, collate
from hvtrain.data.sources import (ArraySource, SampleError, Samples, SourceError, as_source, failure, preview,
                                  sample_rngs)
from hvtrain.errors import UserCodeError


class Squares:
    def __len__(self):
        return 20

    def __getitem__(self, index):
        assert type(index) is int
        if index == 13:
            raise KeyError("thirteen")
        return np.full(2, index, np.float32), index * index


class Batched(Squares):
    def __init__(self, answer=list):
        self.answer, self.calls = answer, 0

    def __getitems__(self, indices):
        self.calls += 1
        if self.answer == "short":
            return [self[index] for index in indices[1:]]
        if self.answer == "batch":
            return np.array(indices), {"square": np.square(indices)}
        if self.answer == "short batch":
            return {"a": (np.array(indices[1:]),)}
        return [self[index] for index in indices]


class Noisy(Squares):
    def sample(self, index, rng):
        return index + rng.random(3)


def fetch(data, *indices, seed=0, epoch=0):
    return as_source(data).fetch(np.array(indices, np.int64), seed=seed, epoch=epoch)


def test_indexed():
    got = fetch(Squares(), 3, 1)
    assert isinstance(got, Samples) and [square for _, square in got] == [9, 1]
    assert len(as_source(Squares())) == 20
    assert fetch([10, 20, 30], 2, 0) == [30, 10]


def test_the_failing_sample_is_named():
    with pytest.raises(SampleError, match="Sample 13 of the data set.*KeyError: 'thirteen'") as caught:
        fetch(Squares(), 3, 13, 4)
    assert caught.value.index == 13
    assert isinstance(caught.value, UserCodeError)
    assert 'raise KeyError("thirteen")' in caught.value.traceback_text
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(SampleError, match=r"Samples 1, 13 of"):
        fetch(Batched(), 1, 13)


def test_stop_iteration_of_the_data_set_does_not_end_the_epoch():
    class Ends(Squares):
        def __getitem__(self, index):
            raise StopIteration

    with pytest.raises(SampleError, match="StopIteration"):
        fetch(Ends(), 1)


def test_batch_fetch_is_one_call():
    data = Batched()
    assert [square for _, square in fetch(data, 3, 1)] == [9, 1]
    assert data.calls == 1
    numbers, squares = fetch(Batched("batch"), 3, 1)
    assert numbers.tolist() == [3, 1] and squares["square"].tolist() == [9, 1]


@pytest.mark.parametrize("answer", ["short", "short batch"])
def test_batch_fetch_must_return_every_sample(answer):
    with pytest.raises(SourceError, match="asked for 3 samples and returned 2"):
        fetch(Batched(answer), 3, 1, 5)


def test_augmentation_depends_on_seed_epoch_and_index_alone():
    base = np.array(fetch(Noisy(), 3, 1, 7, seed=4, epoch=2))
    assert (np.array(fetch(Noisy(), 7, 3, seed=4, epoch=2)) == base[[2, 0]]).all()
    for seed, epoch in ((5, 2), (4, 3)):
        assert (np.array(fetch(Noisy(), 3, 1, 7, seed=seed, epoch=epoch)) != base).all()
    assert len(set((base - base.astype(int)).ravel())) == 9


def test_augmentation_streams_start_afresh_whatever_the_sample_before_drew():
    def draws(indices, before):
        for index, rng in zip(indices, sample_rngs(0, 0, indices)):
            if index == 5:
                return rng.random(4).tolist(), rng.integers(0, 9, 3, dtype=np.int32).tolist()
            rng.integers(0, 9, before, dtype=np.int32)  # leaves half a word and half a block behind

    assert draws([5], 0) == draws([9, 5], 1) == draws([9, 5], 3)


def test_a_foreign_sample_method_is_not_ours():
    class Frame(Squares):
        def sample(self, n=None, frac=None):
            raise AssertionError

    assert fetch(Frame(), 2)[0][1] == 4


def test_arrays():
    x, y = np.arange(60.0).reshape(20, 3), np.arange(20)
    for data in (ArraySource(x, y), (x, y)):
        rows, labels = fetch(data, 7, 2)
        assert (rows == x[[7, 2]]).all() and labels.tolist() == [7, 2]
        rows[:] = -1
        assert x.min() == 0
    assert fetch(x, 3).tolist() == [[9, 10, 11]]
    assert len(as_source((x, y))) == 20
    assert fetch((x, y)).__len__() == 2 and fetch((x, y))[0].shape == (0, 3)
    row, label = ArraySource(x, y)[-1]
    assert row.tolist() == [57, 58, 59] and label == 19
    assert len(list(ArraySource(x))) == 20
    assert fetch(ArraySource([1, 2, 3]), 2).tolist() == [3]


def test_a_subclass_of_array_source_keeps_what_it_adds():
    class Doubled(ArraySource):
        def __getitem__(self, index):
            return 2 * super().__getitem__(index)

    class Shaken(ArraySource):
        def sample(self, index, rng):
            return self[index] + rng.random()

    assert fetch(Doubled(np.arange(5)), 3) == [6]
    assert 3 < fetch(Shaken(np.arange(5)), 3)[0] < 4


def test_memory_maps_stay_on_disk(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(1000))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert fetch((mapped,), 999, 5).tolist() == [999, 5]


@pytest.mark.parametrize("data, message", [
    (lambda: (np.ones(3), np.ones(4)), r"equally long, got lengths \[3, 4\]"),
    (lambda: (np.ones(3), [1, 2, 3]), "tuple, which must hold equally long arrays.*builtins.list"),
    (lambda: {"x": np.ones(3)}, r"builtins.dict.*ArraySource\(images"),
    (lambda: (number for number in range(3)), "generator.*no usable len.*__getitem__"),
    (lambda: None, "NoneType.*no usable len"),
    (lambda: {1, 2}, "set.*neither __getitem__"),
    (lambda: np.array(5.0), "first axis"),
    (lambda: np.array([None, {}]), "numbers.*object"),
    (lambda: Squares, "builtins.type"),
])
def test_what_cannot_be_used_is_explained(data, message):
    with pytest.raises(SourceError, match=message) as caught:
        as_source(data())
    assert isinstance(caught.value, TypeError) and isinstance(caught.value, UserCodeError)


def test_array_source_needs_arrays():
    with pytest.raises(SourceError, match="at least one"):
        ArraySource()
    with pytest.raises(SourceError, match="Array 1"):
        ArraySource(np.ones(2), [[1, 2], [3]])


def test_lookalikes_of_other_libraries_are_refused():
    base = type("DatasetV2", (Squares,), {"__module__": "tensorflow.python.data.ops.dataset_ops"})
    with pytest.raises(SourceError, match="has no index.*Task.pipeline"):
        as_source(type("Mine", (base,), {})())
    with pytest.raises(SourceError, match=r"\.dataset"):
        as_source(type("DataLoader", (), {"__module__": "torch.utils.data", "__len__": lambda self: 3})())


def test_collate_arrays_numbers_and_text():
    image, label, weight, sure, name = collate([
        (np.full((2, 3), index, np.float32), index, index / 2, index > 1, str(index)) for index in range(4)])
    assert image.shape == (4, 2, 3) and image.dtype == np.float32 and image[3, 0, 0] == 3
    assert label.tolist() == [0, 1, 2, 3] and label.dtype == np.int64
    assert weight.tolist() == [0, 0.5, 1, 1.5] and weight.dtype == np.float32
    assert sure.dtype == np.bool_ and name == ["0", "1", "2", "3"]


def test_collate_keeps_chosen_types_and_structures():
    Pair = namedtuple("Pair", "x y")
    got = collate([{"a": [np.float64(1), np.int8(2)], "b": Pair(np.array(3), 4)}] * 2)
    assert isinstance(got["a"], list) and got["a"][0].dtype == np.float64 and got["a"][1].dtype == np.int8
    assert isinstance(got["b"], Pair) and got["b"].x.shape == (2,)
    assert collate([1, 2.5]).dtype == np.float32
    assert collate([np.zeros((0, 3))] * 2).shape == (2, 0, 3)


@pytest.mark.parametrize("samples, position, message", [
    ([np.ones(2), np.ones(2), np.ones(3)], 2, r"sample has shape \(3,\).*\(2,\)"),
    ([(1, {"x": np.ones((2, 3))}), (1, {"x": np.ones((3, 2))})], 1, r"sample\[1\]\['x'\] has shape"),
    ([{"x": 1}, {"y": 1}], 1, r"keys \['y'\]"),
    ([(1, 2), (1, 2, 3)], 1, "3 parts"),
    ([1, None], 1, "None.*Return the same kind"),
    ([1, "one"], 1, "builtins.str"),
    ([np.ones(1), 1], 1, "builtins.int"),
    ([None, None], 0, "None, which cannot be stacked"),
    ([2**70, 2**70], 0, "64 bits"),
    ([np.array([None])] * 2, 0, "object"),
])
def test_collate_says_what_does_not_fit(samples, position, message):
    with pytest.raises(CollateError, match=message) as caught:
        collate(samples)
    assert caught.value.position == position


def test_torch_is_used_but_never_imported():
    code = ("import sys, numpy; from hvtrain.data import ArraySource, Loader\n"
            "load = Loader(ArraySource(numpy.ones((5, 2))))\n"
            "print(next(load.batches([(0, numpy.arange(2))])).shape)\n"
            "print([name for name in ('torch', 'tensorflow', 'horovod') if name in sys.modules])")
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split("\n")[:2] == ["(2, 2)", "[]"]


def test_torch_tensors():
    torch = pytest.importorskip("torch")
    x, y = torch.arange(60.0).reshape(20, 3), torch.arange(20)
    rows, labels = fetch((x, y), 7, 2)
    assert torch.equal(rows, x[[7, 2]]) and labels.tolist() == [7, 2]
    rows.fill_(-1)
    assert x.min() == 0
    assert fetch((x.bfloat16(), y), 4)[0].dtype == torch.bfloat16
    assert fetch(x.clone().requires_grad_(), 4).requires_grad is False
    with pytest.raises(SourceError, match="without axes"):
        as_source(torch.tensor(1.0))
    stacked, numbers = collate([(x[index], index) for index in range(4)])
    assert torch.equal(stacked, x[:4]) and isinstance(numbers, np.ndarray)
    with pytest.raises(CollateError, match=r"shape \(3,\)"):
        collate([x, x[0]])


def test_torch_data_sets():
    data = pytest.importorskip("torch.utils.data")
    import torch
    x, y = torch.arange(60.0).reshape(20, 3), torch.arange(20)
    assert isinstance(as_source(data.TensorDataset(x, y)), ArraySource)
    subset = data.Subset(data.TensorDataset(x, y), [5, 6, 7])
    rows, labels = collate(fetch(subset, 2, 0))
    assert torch.equal(rows, x[[7, 5]]) and labels.tolist() == [7, 5]
    assert collate(fetch(data.TensorDataset(x), 3))[0].shape == (1, 3)
    with pytest.raises(SourceError, match=r"\.dataset"):
        as_source(data.DataLoader(data.TensorDataset(x, y)))

    class Stream(data.IterableDataset):
        def __iter__(self):
            return iter(range(3))

    with pytest.raises(SourceError, match="no usable len"):
        as_source(Stream())


def test_messages_stay_short():
    assert preview(np.arange(3)) == "0, 1, 2"
    assert preview(np.arange(900)) == "0, 1, 2, 3, ... (900 in all)"
    assert failure(ValueError("no"), "It failed").traceback_text == "ValueError: no\n"
