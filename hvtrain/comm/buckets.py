"""Which gradient lies in which flat bucket: pure arithmetic, the same on every rank.

Backward produces the gradients of the last layers first, so buckets are filled from the end of the parameter
list; the first one is small, so that reducing starts early::

    parameters   p0 p1 p2 | p3 p4 | p5          sizes in elements
    buckets      [   2   ]  [ 1 ]  [0]          0 is full first; 2, the last, also carries the tail

Each bucket is reduced in one operation of its own, in place: the order of summation depends on the number of
ranks alone, never on timing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Hashable, Sequence


@dataclass(frozen=True)
class Item:
    """One gradient: its index in the parameter list, its size, and what must match within a bucket."""

    index: int
    elements: int
    bytes_each: int
    kind: Hashable  # dtype and device


@dataclass(frozen=True)
class Slot:
    """Where a gradient lies in its bucket, in elements."""

    index: int
    offset: int
    elements: int


@dataclass(frozen=True)
class Bucket:
    kind: Hashable
    slots: tuple[Slot, ...]

    @property
    def elements(self) -> int:
        last = self.slots[-1]
        return last.offset + last.elements


def plan(items: Sequence[Item], bucket_bytes: int, first_bytes: int) -> tuple[Bucket, ...]:
    """Pack ``items`` (in parameter order) into buckets of at most ``bucket_bytes``, from the last one back.

    The first bucket holds at most ``first_bytes``. A gradient larger than the limit gets a bucket of its own.
    A bucket holds one kind only; items of different kinds are packed apart.
    """
    full: list[Bucket] = []
    open_slots: dict[Hashable, list[Slot]] = {}
    sizes: dict[Hashable, int] = {}
    for item in reversed(items):
        size = item.elements * item.bytes_each
        slots = open_slots.setdefault(item.kind, [])
        limit = bucket_bytes if full else min(first_bytes, bucket_bytes)
        if slots and sizes[item.kind] + size > limit:
            full.append(Bucket(item.kind, tuple(slots)))
            slots = open_slots[item.kind] = []
        offset = slots[-1].offset + slots[-1].elements if slots else 0
        sizes[item.kind] = (sizes[item.kind] if slots else 0) + size
        slots.append(Slot(item.index, offset, item.elements))
    return (*full, *(Bucket(kind, tuple(slots)) for kind, slots in open_slots.items() if slots))
