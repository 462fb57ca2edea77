"""Where samples come from: what a task's ``data()`` may return, brought to one form.

======================================  =====================================================
the object has                          a batch is
======================================  =====================================================
``__len__`` and ``__getitem__``         the collated samples, one call each
``__getitems__(indices)``               the same with one call for all; or the batch it returns
``sample(index, rng)``                  as the first, with a random generator for augmentation
batches (`keras.utils.PyDataset`)       rows of its batches, see ``pydataset.py``
nothing, it is arrays (`ArraySource`)   one gather per array
======================================  =====================================================
"""

from __future__ import annotations

import inspect
import sys
import traceback
from typing import Any, Callable, Iterator, Protocol, Sequence

import numpy as np

from hvtrain.errors import UserCodeError

_SAMPLE_STREAM = 1  # spawn key of the per-sample generators; sampler.py's orders have 0


class SourceError(UserCodeError, TypeError):
    """What a task gave as data cannot be used as such."""


class SampleError(UserCodeError):
    """The data set raised; ``index`` names the sample, None where one call was to load several."""

    def __init__(self, message: str, traceback_text: str = "", index: int | None = None):
        self.index = index
        super().__init__(message, traceback_text)


class Samples(list):
    """Samples that are still to be collated; anything else that a source fetches is a batch already."""


class Source(Protocol):
    """What the loader needs. ``fetch`` is called by several threads at once."""

    def __len__(self) -> int:
        """Number of samples."""

    def fetch(self, indices: np.ndarray, *, seed: int, epoch: int) -> Any:
        """The samples at ``indices`` (int64, not empty): `Samples`, or the finished batch."""


class ArraySource:
    """Equally long arrays or torch tensors (first axis: samples); a batch is a tuple of their rows.

    With one array alone a batch is that array's rows. Nothing is copied here; a fetched batch is a copy.
    Raises SourceError for unequal lengths and for what is no array.
    """

    def __init__(self, *arrays: Any):
        if not arrays:
            raise SourceError("ArraySource needs at least one array, e.g. ArraySource(images, labels).")
        self._gathers, lengths = zip(*(_gather(array, place) for place, array in enumerate(arrays)))
        if len(set(lengths)) > 1:
            raise SourceError(f"The arrays of a data set must be equally long, got lengths {list(lengths)}.")
        self._length = lengths[0]

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Any:
        if not -self._length <= index < self._length:
            raise IndexError(f"index {index} of {self._length} samples")
        rows = tuple(gather(np.array([index % self._length]))[0] for gather in self._gathers)
        return rows if len(rows) > 1 else rows[0]

    def fetch(self, indices: np.ndarray, *, seed: int = 0, epoch: int = 0) -> Any:
        """The batch at ``indices``; ``seed`` and ``epoch`` have no influence."""
        rows = tuple(gather(indices) for gather in self._gathers)
        return rows if len(rows) > 1 else rows[0]


def as_source(data: Any) -> Source:
    """Brings what a task returned as data to a `Source`; a tuple of arrays is taken as ArraySource(*them).

    Raises SourceError, which says what was expected and what came.
    """
    from hvtrain.data.pydataset import PyDatasetSource  # which is made of parts of this module

    if isinstance(data, (_Indexed, PyDatasetSource)) or _is_plain_array_source(data):
        return data
    if _is_array(data):
        return ArraySource(data)
    tensors = getattr(data, "tensors", ())
    if isinstance(data, tuple) and data and all(map(_is_array, data)):
        return ArraySource(*data)
    if _qualified(type(data)) == "torch.TensorDataset" and len(tensors) > 1:
        return ArraySource(*tensors)  # the same batches, some 20 times faster
    if "keras.PyDataset" in map(_qualified, type(data).__mro__):
        return PyDatasetSource(data)
    _refuse_lookalikes(data)
    try:
        length = len(data)
    except Exception as error:
        raise SourceError(
            f"The data is {_kind(data)}, which has no usable len() ({error}). hvtrain visits every sample "
            "exactly once whatever the number of workers, so it must know how many there are: return an "
            "object with __len__ and __getitem__, or ArraySource(images, labels).") from error
    if _takes_index_and_rng(getattr(data, "sample", None)):
        return _Augmented(data, length)
    if callable(getattr(data, "__getitems__", None)):
        return _Batched(data, length)
    if hasattr(type(data), "__getitem__"):
        return _Indexed(data, length)
    raise SourceError(f"The data is {_kind(data)}, which has a length but neither __getitem__(index), "
                      "__getitems__(indices) nor sample(index, rng). Write one of them.")


class _Indexed:
    def __init__(self, data: Any, length: int):
        self.data, self._length = data, length

    def __len__(self) -> int:
        return self._length

    def fetch(self, indices: np.ndarray, *, seed: int, epoch: int) -> Any:
        return _each(self.data.__getitem__, indices)


class _Augmented(_Indexed):
    def fetch(self, indices: np.ndarray, *, seed: int, epoch: int) -> Any:
        rngs = sample_rngs(seed, epoch, indices)
        sample = self.data.sample
        return _each(lambda index: sample(index, next(rngs)), indices)


class _Batched(_Indexed):
    def fetch(self, indices: np.ndarray, *, seed: int, epoch: int) -> Any:
        try:
            got = self.data.__getitems__(indices.tolist())
        except Exception as error:
            raise failure(error, f"Samples {preview(indices)} of the data set could not be loaded") from error
        count = len(got) if isinstance(got, list) else _leading(got)
        if count not in (None, len(indices)):
            raise SourceError(f"__getitems__ of {_kind(self.data)} was asked for {len(indices)} samples and "
                              f"returned {count}. Return one per index, in their order.")
        return Samples(got) if isinstance(got, list) else got


def sample_rngs(seed: int, epoch: int, indices: Sequence[int] | np.ndarray) -> Iterator[np.random.Generator]:
    """For every index its generator, the same whichever batch, rank or thread it is loaded in.

    One generator object is set anew for each index (a tenth of the cost of a new one), so each must be done
    with before the next is taken. The stream is Philox, keyed by (seed, epoch), its counter from the index.
    """
    key = np.random.SeedSequence(seed, spawn_key=(_SAMPLE_STREAM, epoch)).generate_state(2, np.uint64)
    bits = np.random.Philox(key=key)
    generator = np.random.Generator(bits)
    state = bits.state
    for index in np.asarray(indices).tolist():
        state["state"]["counter"][1] = index  # word 0 counts within the sample: 2**64 blocks of its own
        bits.state = state
        yield generator


def failure(error: Exception, what: str, index: int | None = None) -> SampleError:
    """A SampleError about ``error``, with its type, message and traceback."""
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return SampleError(f"{what}: {type(error).__name__}: {error}", text, index)


def preview(indices: np.ndarray) -> str:
    """The first few indices, for messages."""
    shown = ", ".join(map(str, indices[:4].tolist()))
    return shown if len(indices) <= 4 else f"{shown}, ... ({len(indices)} in all)"


def _each(load: Callable[[int], Any], indices: np.ndarray) -> Samples:
    loaded = Samples()
    index = -1
    try:
        for index in indices.tolist():
            loaded.append(load(index))
    except Exception as error:
        raise failure(error, f"Sample {index} of the data set could not be loaded", index) from error
    return loaded


def _gather(array: Any, place: int) -> tuple[Callable[[np.ndarray], Any], int]:
    """How to take rows of ``array``, and how many it has."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor):
        return _gather_tensor(torch, array, place)
    try:
        rows = np.asarray(array)
    except Exception as error:
        raise SourceError(f"Array {place} of the data is {_kind(array)}, which numpy cannot read: {error}. "
                          "Give numpy arrays or torch tensors.") from error
    if rows.ndim == 0 or rows.dtype.hasobject:
        raise SourceError(f"Array {place} of the data, {_kind(array)}, must hold numbers along a first axis "
                          f"of samples; its dtype is {rows.dtype} and its shape {rows.shape}.")
    return lambda indices: rows.take(indices, axis=0), len(rows)


def _gather_tensor(torch: Any, tensor: Any, place: int) -> tuple[Callable[[np.ndarray], Any], int]:
    if tensor.ndim == 0:
        raise SourceError(f"Array {place} of the data is a tensor without axes; the first axis is samples.")
    tensor = tensor.detach()
    try:
        rows = tensor.numpy()
    except (TypeError, RuntimeError):  # on an accelerator, or bfloat16, which numpy lacks
        return lambda indices: tensor.index_select(
            0, torch.from_numpy(np.array(indices)).to(tensor.device)), len(tensor)
    # numpy's gather is faster than index_select and starts no OpenMP threads in the loader's threads.
    return lambda indices: torch.from_numpy(rows.take(indices, axis=0)), len(rows)


def _is_array(value: Any) -> bool:
    # Only what lies in memory: an h5py data set looks like an array too, but is to be read as it is used.
    kinds = [getattr(sys.modules.get(name), "Tensor", np.ndarray) for name in ("torch", "tensorflow")]
    return isinstance(value, (np.ndarray, *kinds))


def _is_plain_array_source(data: Any) -> bool:
    """An ArraySource, but not a subclass that brings its own samples: those must not be passed over."""
    if not isinstance(data, ArraySource) or _takes_index_and_rng(getattr(data, "sample", None)):
        return False
    kind = type(data)
    return kind.fetch is not ArraySource.fetch or kind.__getitem__ is ArraySource.__getitem__


def _leading(batch: Any) -> int | None:
    """Length of a finished batch, None where it cannot be told."""
    while isinstance(batch, (tuple, dict)) and batch:
        batch = next(iter(batch.values() if isinstance(batch, dict) else batch))
    shape = getattr(batch, "shape", ())
    return int(shape[0]) if len(shape) else None


def _refuse_lookalikes(data: Any) -> None:
    """Things with a length that are not indexed by sample; taking them would train on nonsense."""
    if isinstance(data, (dict, str, bytes, type)):
        raise SourceError(f"The data is {_kind(data)}. Return a data set with __len__ and "
                          "__getitem__(index), or ArraySource(images, labels).")
    if isinstance(data, tuple):
        raise SourceError("The data is a tuple, which must hold equally long arrays, e.g. (images, labels), "
                          f"got ({', '.join(map(_kind, data))}). Samples go into a list.")
    for base in type(data).__mro__:
        if _qualified(base) == "torch.DataLoader":
            raise SourceError("The data is a torch DataLoader. hvtrain batches, shuffles and splits over the "
                              "workers by itself: return the loader's .dataset.")
        if _qualified(base) == "tensorflow.DatasetV2":
            raise SourceError(f"The data is {_kind(data)}, which has no index. hvtrain batches, shuffles and splits over "
                              "the workers by itself: return an object whose __getitem__(index) is one sample, or "
                              "ArraySource(images, labels); what the data set did with them can go into Task.pipeline.")


def _takes_index_and_rng(method: Any) -> bool:
    """Whether it is our ``sample``; other libraries have methods of that name (pandas, for one)."""
    try:
        parameters = inspect.signature(method).parameters.values()
    except (TypeError, ValueError):
        return False
    required = [each for each in parameters if each.default is each.empty
                and each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    return len(required) == 2


def _qualified(kind: type) -> str:
    """Top package and name of a class, to know another library's class without importing it."""
    return f"{kind.__module__.split('.')[0]}.{kind.__name__}"


def _kind(data: Any) -> str:
    return f"of type {type(data).__module__}.{type(data).__qualname__}"
