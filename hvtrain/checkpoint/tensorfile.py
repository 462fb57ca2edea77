"""The safetensors format, streamed: tensors go from their own memory to the file, and are hashed on the way.

    8 bytes      n bytes, JSON, padded with spaces          the rest
    n (LE) | {"name": {"dtype", "shape", "data_offsets"}} | bytes of tensor 1 | tensor 2 | ...

The package's own ``serialize`` first builds the whole file in memory and (from 0.8 on) wants raw pointers;
``serialize_file`` cannot be hashed while it writes. The tests hold both directions against the package.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from typing import Any, Mapping, Protocol

from hvtrain.checkpoint.blob import ITEM_SIZE, Blob
from hvtrain.errors import CheckpointDamaged, UsageError

SUFFIX = ".safetensors"
MAX_HEADER = 100_000_000  # bytes; the same limit as the safetensors package has
_METADATA = "__metadata__"


class Sink(Protocol):
    """Takes bytes in order."""

    def write(self, data: bytes | memoryview) -> object: ...


@dataclass(frozen=True)
class Slot:
    """Where a tensor lies in a file: dtype, shape, and byte range from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def write_tensors(sink: Sink, blobs: Mapping[str, Blob], metadata: Mapping[str, str] | None = None) -> None:
    """Write all tensors to ``sink`` as one safetensors file. Equal input gives equal bytes.

    Raises UsageError when the names alone make a header that readers refuse.
    """
    # Widest first, as the package does: then every tensor is aligned to its own element size.
    order = sorted(blobs, key=lambda name: (-ITEM_SIZE[blobs[name].dtype], name))
    header: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    offset = 0
    for name in order:
        if name == _METADATA or not isinstance(name, str):
            raise UsageError(f"A tensor cannot be named {name!r} in a safetensors file.")
        blob = blobs[name]
        header[name] = {"dtype": blob.dtype, "shape": list(blob.shape),
                        "data_offsets": [offset, offset + blob.nbytes]}
        offset += blob.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise UsageError(f"The names and shapes of {len(blobs)} tensors take {len(text)} bytes; "
                         f"a safetensors header has at most {MAX_HEADER}.")
    sink.write(len(text).to_bytes(8, "little") + text)
    for name in order:
        sink.write(blobs[name].data)


def header_length(prefix: bytes | memoryview, size: int) -> int:
    """Bytes of the JSON header, from a file's first 8 bytes and its size; CheckpointDamaged if impossible."""
    length = int.from_bytes(prefix[:8], "little")
    if len(prefix) < 8 or length > min(size - 8, MAX_HEADER):
        raise CheckpointDamaged(f"not a safetensors file: {size} bytes, header said to have {length}")
    return length


def read_layout(header: bytes | bytearray | memoryview, size: int) -> dict[str, Slot]:
    """Parse the JSON header of a file of ``size`` bytes; slots by name.

    Trusts nothing: CheckpointDamaged unless the tensors fill the rest of the file exactly, without gaps or
    overlaps, and each has as many bytes as its dtype and shape say.
    """
    start = 8 + len(header)
    try:
        entries = json.loads(bytes(header), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise CheckpointDamaged(f"safetensors header is not JSON: {error}") from None
    if not isinstance(entries, dict):
        raise CheckpointDamaged("safetensors header is not a JSON object")
    entries.pop(_METADATA, None)
    slots = {name: _slot(name, entry, start) for name, entry in entries.items()}
    position = start
    for name, slot in sorted(slots.items(), key=lambda item: (item[1].begin, item[1].end)):
        if slot.begin != position:
            raise CheckpointDamaged(f"tensor {name!r} begins at byte {slot.begin}, expected {position}")
        position = slot.end
    if position != size:
        raise CheckpointDamaged(f"tensors end at byte {position}, the file has {size}")
    return slots


def parse(file: bytes | bytearray | memoryview) -> dict[str, Blob]:
    """All tensors of a file held in memory, whose memory they share. CheckpointDamaged if malformed."""
    view = memoryview(file)
    length = header_length(view[:8], len(view))
    slots = read_layout(view[8:8 + length], len(view))
    return {name: Blob(slot.dtype, slot.shape, view[slot.begin:slot.end]) for name, slot in slots.items()}


def _slot(name: str, entry: Any, start: int) -> Slot:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointDamaged(f"tensor {name!r} needs dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_SIZE:
        raise CheckpointDamaged(f"tensor {name!r} has a dtype this version does not know: {dtype!r}")
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        raise CheckpointDamaged(f"tensor {name!r} has a bad shape or bad offsets")
    begin, end = offsets
    if end - begin != prod(shape) * ITEM_SIZE[dtype]:
        raise CheckpointDamaged(f"tensor {name!r} has {end - begin} bytes, its shape and dtype say "
                                f"{prod(shape) * ITEM_SIZE[dtype]}")
    return Slot(dtype, tuple(shape), start + begin, start + end)


def _naturals(value: Any) -> bool:
    # bounded in number and size, so that a hostile shape cannot make prod() expensive
    return (isinstance(value, list) and len(value) <= 64
            and all(type(item) is int and 0 <= item < 2**63 for item in value))


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice")
    return result
