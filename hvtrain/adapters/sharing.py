"""Sending JSON values and whole states from one rank to all."""

from __future__ import annotations

import json
from math import prod
from typing import Any, Callable, Mapping, Sequence

import numpy as np

from hvtrain.checkpoint.blob import ITEM_SIZE, Blob
from hvtrain.engine.world import World

CHUNK_BYTES = 64 << 20
"""States travel in pieces of this size, so that one operation never outlasts ``comm.timeout``."""


def share_bytes(world: World, data: bytes | bytearray | None, root: int, name: str,
                tick: Callable[[], None] = lambda: None) -> bytearray:
    """Rank ``root``'s ``data`` on every rank (others pass None); ``tick`` is called for every piece."""
    length = np.array([len(data) if data is not None else 0], np.int64)
    world.broadcast(length, root, f"{name}.length")
    size = int(length[0])
    buffer = bytearray(data) if world.rank == root and data is not None else bytearray(size)
    for start in range(0, size, CHUNK_BYTES):
        piece = np.frombuffer(buffer, np.uint8, min(CHUNK_BYTES, size - start), start)
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
        size = ITEM_SIZE[dtype] * prod(shape)
        result.setdefault(group, {})[name] = Blob(dtype, tuple(shape), payload[offset:offset + size])
        offset += size
    return result


def share_state(world: World, holder: Any, root: int, tick: Callable[[], None] = lambda: None) -> int:
    """Overwrite the state of ``holder``, an adapter, by that of rank ``root``'s; bytes received."""
    if world.size == 1:
        return 0
    mine = world.rank == root
    groups = share_groups(world, holder.export(copy=False) if mine else None, root, tick)
    scalars = share(world, holder.scalars() if mine else None, root, "state.scalars")
    if mine:
        return 0
    holder.restore(groups, scalars)
    return sum(blob.nbytes for blobs in groups.values() for blob in blobs.values())


def total(world: World, values: Sequence[float], name: str) -> list[float]:
    """Each of ``values`` summed over the ranks, in double precision."""
    vector = np.array(values, np.float64)
    world.wait(world.sum_async(vector, name))
    return vector.tolist()


def means(world: World, sums: Mapping[str, float], samples: int) -> dict[str, float]:
    """``sums`` over each rank's ``samples``, as means over those of all ranks.

    Sums and numbers of samples are added up, not means: so shares of any size give the same result. A rank without
    samples has found no names; the first rank has some, if any has.
    """
    names = share(world, sorted(sums), 0, "eval.names")
    *totals, count = total(world, [sums.get(name, 0.0) for name in names] + [float(samples)], "eval.sums")
    return {name: value / max(count, 1.0) for name, value in zip(names, totals)}
