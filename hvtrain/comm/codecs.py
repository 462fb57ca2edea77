"""How gradients travel: what a bucket becomes on the wire, and what its sum is then worth.

========  ==================  ==========================================================================
none      4 bytes a number    the sum of the float32 numbers
fp16      2 (and 4 a block)   11 bits of mantissa; every block of 1,024 has a power of two as its scale, so
                              that no value is too large, and none that matters too small
bf16      2                   8 bits of mantissa, the range of float32
int8      1 (and 4 a block)   multiples of 1/127 of the block's largest value, rounded up or down at random so
                              that the mean is right; the noise depends on the seed, the step and the rank
========  ==================  ==========================================================================

Codecs act between hosts; within one, ranks add up through shared memory. Sums are taken in float32, in a fixed order,
and every rank gets the same bits (see ``engine/native/``). Adding compressed numbers up instead, as Horovod's fp16
compression does, loses bits with every rank and overflows at 65,504.
"""

from __future__ import annotations

from typing import Any, Mapping, Protocol

from hvtrain.checkpoint.blob import Blob
from hvtrain.engine.world import World

NAMES = ("none", "fp16", "bf16", "int8")
BYTES = {"none": 4, "fp16": 2, "bf16": 2, "int8": 1}
BLOCK = 1024
SCALED = ("fp16", "int8")


def wire_bytes(codec: str, elements: int) -> int:
    """Bytes that ``elements`` float32 numbers take on the wire, once."""
    return elements * BYTES[codec] + (-(-elements // BLOCK) * 4 if codec in SCALED else 0)


class Codec(Protocol):
    """Sums a run's buckets over the ranks.

    One rank's state stands for all, when it is sent to a replacement or written into a checkpoint: so what a codec
    remembers from step to step must be equal on all ranks, as the error of what *all* have received is. ``start`` and
    ``finish`` belong to a step that may be broken off and done again; ``commit`` says that it counts.
    """

    name: str
    lossy: bool

    def start(self, world: World, flat: Any, name: str) -> Any:
        """Begin to sum ``flat`` (1-d) over ``world``, in place; returns a handle for :meth:`finish`."""

    def finish(self, world: World, handle: Any) -> None:
        """Wait for a handle; then ``flat`` holds the sum, with equal bits on all ranks. Raises RoundBroken."""

    def commit(self) -> None:
        """The step whose sums were finished last has been applied."""

    def export(self) -> dict[str, Blob]:
        """What is remembered from step to step; empty for a codec without state."""

    def restore(self, blobs: Mapping[str, Blob]) -> None:
        """Take back what :meth:`export` gave; empty starts afresh."""


class EngineCodec:
    """One of :data:`NAMES`, done by the engine."""

    def __init__(self, name: str):
        self.name, self.lossy = name, name != "none"

    def start(self, world: World, flat: Any, name: str) -> Any:
        return world.sum_async(flat, name, self.name)

    def finish(self, world: World, handle: Any) -> None:
        world.wait(handle)

    def commit(self) -> None:
        pass

    def export(self) -> dict[str, Blob]:
        return {}

    def restore(self, blobs: Mapping[str, Blob]) -> None:
        pass
