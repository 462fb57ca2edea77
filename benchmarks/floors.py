"""What a step costs at least: its computation, and the bytes that have to cross the network. Pure.

::

    ring, or exchange of slices, of a buffer of B bytes among N ranks:   2 (N - 1) / N  B  sent, and as much received
    floor of a step:   computation  +  bytes one way / bandwidth         the two ways are used at the same time

What overlaps comes off: a step may be faster than its floor by as much of the exchange as goes on during backward.
"""

from __future__ import annotations

import math
from typing import Sequence

from hvtrain.comm.codecs import wire_bytes

HALF = ("fp16", "bf16")


def wire(kind: str, codec: str, shapes: Sequence[Sequence[int]]) -> int:
    """Bytes that gradients of these shapes are on the wire, once.

    ``kind`` is hvtrain, horovod or ddp; ``codec`` one of hvtrain's, or of DDP's hooks: none, fp16, bf16, powersgd.
    """
    elements = sum(math.prod(shape) for shape in shapes)
    if kind == "hvtrain":
        return wire_bytes(codec, elements)
    if codec == "powersgd":
        return 4 * sum(_low_rank(shape) for shape in shapes)
    return elements * (2 if codec in HALF else 4)


def _low_rank(shape: Sequence[int]) -> int:
    """Numbers that PowerSGD of rank 1 sends for a gradient: two vectors, or all of it if that is not half as much."""
    rows, columns = shape[0], math.prod(shape[1:])
    whole, vectors = rows * columns, rows + columns
    return vectors if len(shape) > 1 and 2 * vectors < whole else whole


def one_way(wired: int, ranks: int) -> float:
    """Bytes that each rank sends, and as many receives, to sum ``wired`` bytes over ``ranks``."""
    return 2 * (ranks - 1) / ranks * wired


def floor(computation: float, sent: float, bandwidth: float) -> float:
    """Seconds of a step, from seconds, bytes one way and bytes per second."""
    return computation + sent / bandwidth
