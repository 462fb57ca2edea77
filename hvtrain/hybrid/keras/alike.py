"""Lists of micro-batches that go through one graph."""

from __future__ import annotations

from typing import Any, Sequence

from hvtrain.adapters.keras.batches import AnyBatch


class AlikeBatches(AnyBatch):
    """As AnyBatch, for lists of batches of one kind: an extent in which any of them differs is free in all.

    ::

        [(4, 28), (4, 28), (3, 28)]    traced for   [(any, 28)] * 3
        [(4, 28), (4, 30), (4, 31)]    traced for   [(any, any)] * 3, once
    """

    def _differing(self, batch: Any, extents: Sequence[tuple[int, ...]],
                   first: Sequence[tuple[int, ...]]) -> tuple[tuple[bool, ...], ...]:
        parts = len(extents) // len(batch)
        free = [tuple(any(mine[part][axis] != first[part][axis] for mine in
                          (extents[begin:begin + parts] for begin in range(0, len(extents), parts)))
                      for axis in range(len(first[part]))) for part in range(parts)]
        return tuple(free * len(batch))
