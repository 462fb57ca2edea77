"""Sending JSON values and whole states from one rank to all."""

from __future__ import annotations

import json
from typing import Any, Callable, Mapping

import torch

from hvtrain.checkpoint.blob import Blob
from hvtrain.engine.world import World

CHUNK_BYTES = 64 << 20
"""States travel in pieces of this size, so that one operation never outlasts ``comm.timeout``."""


def share_bytes(world: World, data: bytes | bytearray | None, root: int, name: str,
                tick: Callable[[], None] = lambda: None) -> bytearray:
    """Rank ``root``'s ``data`` on every rank (others pass None); ``tick`` is called for every piece."""
    length = torch.tensor([len(data) if data is not None else 0], dtype=torch.int64)
    world.broadcast(length, root, f"{name}.length")
    size = int(length.item())
    buffer = bytearray(data) if world.rank == root and data is not None else bytearray(size)
    for start in range(0, size, CHUNK_BYTES):
        piece = torch.frombuffer(buffer, dtype=torch.uint8, offset=start, count=min(CHUNK_BYTES, size - start))
        world.broadcast(piece, root, f"{name}.{start // CHUNK_BYTES}")
        tick()
    return buffer


def share(world: World, value: Any, root: int, name: str) -> Any:
    """Rank ``root``'s JSON-able ``value`` on every rank."""
    if world.size == 1:
        return value
    data = json.dumps(value).encode() if world.rank == root else None
    return json.loads(share_bytes(world, data, root, name))


def share_groups(world: World, groups: Mapping[str, Mapping[str, Blob]] | None, root: int,
                 tick: Callable[[], None] = lambda: None) -> dict[str, dict[str, Blob]]:
    """Rank ``root``'s groups of tensors on every rank (others pass None)."""
    outline = None
    if groups is not None:
        outline = [[group, name, blob.dtype, list(blob.shape)]
                   for group, blobs in groups.items() for name, blob in blobs.items()]
    outline = share(world, outline, root, "state.outline")
    joined = None
    if groups is not None:
        joined = bytearray().join(blob.data for blobs in groups.values() for blob in blobs.values())
    payload = memoryview(share_bytes(world, joined, root, "state.tensors", tick))
    result: dict[str, dict[str, Blob]] = {}
    offset = 0
    for group, name, dtype, shape in outline:
        size = _size(dtype, shape)
        result.setdefault(group, {})[name] = Blob(dtype, tuple(shape), payload[offset:offset + size])
        offset += size
    return result


def _size(dtype: str, shape: list[int]) -> int:
    from math import prod

    from hvtrain.checkpoint.blob import ITEM_SIZE

    return ITEM_SIZE[dtype] * prod(shape)
