"""Blob takes any C-contiguous buffer as it is; the tensor file format agrees with the safetensors package."""

from __future__ import annotations

import array
import ctypes
import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvtrain.checkpoint import Blob, Snapshot
from hvtrain.checkpoint.tensorfile import MAX_HEADER, parse, write_tensors
from hvtrain.errors import CheckpointDamaged, UsageError, UserCodeError

DTYPES = ["bool", "uint8", "int8", "uint16", "int16", "float16", "uint32", "int32", "float32", "uint64",
          "int64", "float64", "complex64"]


def encode(blobs, metadata=None):
    sink = io.BytesIO()
    write_tensors(sink, blobs, metadata)
    return sink.getvalue()


@pytest.mark.parametrize("buffer", [
    np.arange(6, dtype="<f4").reshape(2, 3), array.array("f", range(6)), (ctypes.c_float * 6)(*range(6)),
    bytearray(24), bytes(24), memoryview(bytearray(24)), np.arange(6, dtype="<f4").reshape(2, 3).data,
], ids=lambda buffer: type(buffer).__name__)
def test_buffers_are_shared_not_copied(buffer):
    blob = Blob("F32", (2, 3), buffer)
    assert blob.data.nbytes == 24 and blob.data.format == "B" and blob.data.ndim == 1
    address = np.frombuffer(buffer, np.uint8).ctypes.data
    assert np.frombuffer(blob.data, np.uint8).ctypes.data == address


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (5,), (2, 3, 4)])
def test_numpy_round_trip(dtype, shape):
    value = (np.random.default_rng(0).random(shape) * 100).astype(dtype)
    blob = Blob.from_numpy(value)
    np.testing.assert_array_equal(blob.to_numpy(), value)
    assert blob.to_numpy().dtype == value.dtype and blob.shape == shape
    if value.size and value.ndim:
        assert np.shares_memory(blob.to_numpy(), value)


def test_other_layouts_are_converted():
    transposed = np.arange(6.0).reshape(2, 3).T
    big_endian = np.arange(6, dtype=">i4")
    np.testing.assert_array_equal(Blob.from_numpy(transposed).to_numpy(), transposed)
    np.testing.assert_array_equal(Blob.from_numpy(big_endian).to_numpy(), big_endian)


def test_bfloat16():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    value = np.arange(4).astype(ml_dtypes.bfloat16)
    blob = Blob.from_numpy(value)
    assert blob.dtype == "BF16" and (blob.to_numpy() == value).all()


@pytest.mark.parametrize("arguments", [
    ("F31", (1,), bytes(4)), ("F32", (2,), bytes(4)), ("F32", (-1,), b""), ("F32", (1,), "text"),
    ("F32", (2, 2), np.zeros((2, 2), "f4").T[:, :1]),
])
def test_bad_blobs_are_refused(arguments):
    with pytest.raises(UsageError):
        Blob(*arguments)


def test_unsupported_numpy_dtype():
    with pytest.raises(UsageError, match="complex128"):
        Blob.from_numpy(np.zeros(1, np.complex128))


tensors = st.dictionaries(
    st.text(min_size=1, max_size=8, alphabet=st.characters(codec="utf-8")),
    st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3)), max_size=6)


@settings(max_examples=60, deadline=None)
@given(tensors)
def test_the_safetensors_package_reads_ours_and_we_read_its(described):
    from safetensors.numpy import load, save

    values = {name: np.asarray(np.random.default_rng(1).random(shape) * 9).astype(dtype)
              for name, (dtype, shape) in described.items()}
    ours = encode({name: Blob.from_numpy(value) for name, value in values.items()}, {"format": "pt"})
    for found in (load(ours), {name: blob.to_numpy() for name, blob in parse(ours).items()},
                  {name: blob.to_numpy() for name, blob in parse(save(values)).items()}):
        assert set(found) == set(values)
        for name, value in values.items():
            np.testing.assert_array_equal(found[name], value)
            assert found[name].dtype == value.dtype


def test_equal_tensors_give_equal_bytes_and_aligned_offsets():
    blobs = {"a": Blob("U8", (3,), b"abc"), "b": Blob("F64", (1,), bytes(8)),
             "c": Blob("I16", (1,), bytes(2))}
    text = encode(blobs)
    assert text == encode(dict(reversed(blobs.items())))
    base = np.frombuffer(text, np.uint8).ctypes.data
    for name, blob in parse(text).items():
        offset = np.frombuffer(blob.data, np.uint8).ctypes.data - base
        assert offset % {"a": 1, "b": 8, "c": 2}[name] == 0


def file_with(header, payload=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + payload


def entry(dtype="U8", shape=(4,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize("file", [
    b"", b"\0" * 7, (2**63).to_bytes(8, "little") + b"{}", (MAX_HEADER + 1).to_bytes(8, "little") + b"{}",
    file_with(b"nonsense"), file_with(b"[]"), file_with(b"[" * 100_000), file_with(b"\xff\xfe"),
    file_with({"a": 1}), file_with({"a": {}}), file_with({"a": entry()}), file_with({"a": entry()}, bytes(5)),
    file_with({"a": entry(dtype="F31")}, bytes(4)), file_with({"a": entry(dtype=["U8"])}, bytes(4)),
    file_with({"a": entry(shape=(-4,))}, bytes(4)), file_with({"a": entry(shape=(4.0,))}, bytes(4)),
    file_with({"a": entry(shape=(True,), offsets=(0, 1))}, bytes(1)),
    file_with({"a": entry(shape=(2**62, 2**62))}, bytes(4)),
    file_with({"a": entry(shape=[1] * 1000)}, bytes(4)),
    file_with({"a": entry(offsets=(0, 2**80))}, bytes(4)), file_with({"a": entry(offsets=(-4, 0))}, bytes(4)),
    file_with({"a": entry(), "b": entry()}, bytes(8)), file_with({"a": entry(offsets=(1, 5))}, bytes(5)),
    file_with({"a": entry(), "b": entry(offsets=(5, 9))}, bytes(9)),
    file_with(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
              b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', bytes(1)),
])
def test_hostile_tensor_files_are_refused(file):
    with pytest.raises(CheckpointDamaged):
        parse(file)


def test_state_is_copied_and_must_be_json():
    state = {"cursor": 7, "betas": (0.9, 0.999), "best": float("-inf"), "deep": {"list": [1, None, True]}}
    snapshot = Snapshot(step=1, epoch=0, groups={}, state=state)
    state["deep"]["list"].append(2)
    assert snapshot.cursor == 7 and snapshot.state["deep"] == {"list": [1, None, True]}
    assert snapshot.state["betas"] == [0.9, 0.999]
    for bad, path in [({"a": [{"b": {1}}]}, r"state\.a\[0\]\.b"), ({"a": {1: 2}}, r"state\.a"),
                      ({"a": np.zeros(2)}, r"\.tolist\(\)")]:
        with pytest.raises(UserCodeError, match=path):
            Snapshot(step=1, epoch=0, groups={}, state=bad)
    loop: list = []
    loop.append(loop)
    with pytest.raises(UserCodeError, match="contain itself"):
        Snapshot(step=1, epoch=0, groups={}, state={"a": loop})


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a.b", ".hidden", "x" * 65, "-x"])
def test_group_names_cannot_leave_the_directory(name):
    with pytest.raises(UsageError):
        Snapshot(step=1, epoch=0, groups={name: {}})
