"""The gradients of a step as flat NumPy vectors, for frameworks that hand theirs over as plain memory.

::

    gradients    g5  g4  g3 ...        handed over by put(), in any order, from any thread
    buckets     [g5 g4][g3 g2 g1][g0 | loss, flags, statistics]
                   |                the tail rides along with the last bucket, where that is float32 and travels as it is
                   +-- full: reduced at once, while the others are still being computed
"""

from __future__ import annotations

import threading
import time
from typing import Any, Callable, Sequence, Tuple

import numpy as np

from hvtrain import probe, tracing
from hvtrain.comm import buckets as layout
from hvtrain.comm.codecs import Codec, EngineCodec
from hvtrain.engine.world import World

PLAIN = EngineCodec("none")
FLAGS = 4
"""Room for flags in the tail."""
LINE = 16
"""Gradients begin at multiples of so many numbers: 64 bytes, what vector instructions like and TensorFlow asks for."""


def _rounded(elements: int) -> int:
    return -(-elements // LINE) * LINE


def _zeros(elements: int, kind: str = "float32") -> np.ndarray:
    """Zeros that begin at a multiple of 64 bytes."""
    memory = np.zeros(elements * np.dtype(kind).itemsize + 64, np.uint8)
    begin = -memory.ctypes.data % 64
    return memory[begin:begin + elements * np.dtype(kind).itemsize].view(kind)


Plan = Tuple[layout.Bucket, ...]


def plan(shapes: Sequence[tuple[int, ...]], dtypes: Sequence[str], bucket_bytes: int, first_bytes: int,
         stages: Sequence[int] | None = None) -> Plan:
    """Which gradient lies in which bucket, as :func:`hvtrain.comm.buckets.plan`, each rounded up to whole lines.

    With ``stages``, the stage that each gradient comes from, no bucket holds gradients of two.
    """
    stages = [0] * len(shapes) if stages is None else stages
    packed = layout.plan([layout.Item(i, _rounded(int(np.prod(shape))), np.dtype(dtype).itemsize, (dtype, stage))
                          for i, (shape, dtype, stage) in enumerate(zip(shapes, dtypes, stages))],
                         bucket_bytes, first_bytes)
    return tuple(layout.Bucket(bucket.kind[0], bucket.slots) for bucket in packed)


class FlatBuckets:
    """Buckets for gradients of these ``shapes``, in the model's order, as ``plan`` has it.

    Args:
        statistics: so many further float32 numbers are summed along.
        codec: how float32 buckets travel.
        zeros: makes a float32 vector of so many zeros, for instance in memory that neighbours can read.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], plan: Plan, statistics: int = 0, *, codec: Codec = PLAIN,
                 zeros: Callable[[int], np.ndarray] | None = None):
        self._codec, self._plan = codec, plan
        tail = 1 + FLAGS + statistics
        carries = self._plan[-1].kind == "float32" and not codec.lossy
        sizes = [bucket.elements + (tail if carries and bucket is self._plan[-1] else 0) for bucket in self._plan]
        pool = (zeros or _zeros)(
            sum(_rounded(size) for size, bucket in zip(sizes, self._plan) if bucket.kind == "float32"))
        self._flats: list[np.ndarray] = []
        self.views: list[np.ndarray] = [pool] * len(shapes)
        self._bucket_of = [0] * len(shapes)
        for number, (bucket, size) in enumerate(zip(self._plan, sizes)):
            if bucket.kind == "float32":
                flat, pool = pool[:size], pool[_rounded(size):]
            else:
                flat = _zeros(size, bucket.kind)
            self._flats.append(flat)
            for slot in bucket.slots:
                shape = shapes[slot.index]
                self.views[slot.index] = flat[slot.offset:slot.offset + int(np.prod(shape))].reshape(shape)
                self._bucket_of[slot.index] = number
        self._gradients = [flat[:bucket.elements] for flat, bucket in zip(self._flats, self._plan)]
        if carries:
            self._tail = self._flats[-1][self._plan[-1].elements:]
        else:  # a loss summed in half precision, or through a lossy codec, would be useless
            self._tail = np.zeros(tail, np.float32)
            self._flats.append(self._tail)
        self.statistics = self._tail[1 + FLAGS:]
        self._lock = threading.Lock()
        self._world: World | None = None
        self._handles: list[Any] = [None] * len(self._flats)
        self._missing = [0] * len(self._plan)
        self._fresh, self._last, self._arrived, self._reduced_before = True, False, False, 0.0

    def use(self, world: World) -> None:
        """Reduce over ``world`` from now on."""
        self._world = world

    def begin(self) -> None:
        """Forget the gradients of the step before."""
        self._tail[:] = 0.0
        self._fresh, self._last = True, False

    def pass_begins(self, first: bool, last: bool) -> None:
        """A backward pass begins: what is put adds to what there is, unless this is the ``first`` of the step.

        In the ``last``, a bucket is reduced as soon as it is full; one that carries the tail waits for :meth:`finish`.
        """
        assert self._world is not None
        self._fresh, self._last, self._arrived = first, last, False
        self._missing = [len(bucket.slots) for bucket in self._plan]
        self._handles = [None] * len(self._flats)
        self._reduced_before = self._world.reduced()

    def put(self, index: int, gradient: np.ndarray | None) -> None:
        """Take the gradient of parameter ``index``; None for none. Any thread may call this, once for each in a pass."""
        view = self.views[index]
        if gradient is None:
            if self._fresh:
                view[...] = 0
        elif self._fresh:
            np.copyto(view, gradient)
        else:
            np.add(view, gradient, out=view)
        if not self._last:
            return
        with self._lock:
            if not self._arrived:
                self._arrived = True
                probe.reached("backward")
            number = self._bucket_of[index]
            self._missing[number] -= 1
            if self._missing[number] == 0 and self._flats[number] is not self._carrier_of_tail():
                self._start(number)

    def finish(self, loss_sum: float, flags: Sequence[float], computed: bool) -> tuple[float, tuple[float, ...], float, float]:
        """Start what has not been started, wait for all; without gradients of this rank, if nothing was ``computed``.

        ``statistics`` must have been written. Returns the sum of losses, the flags, and the seconds that were waited
        and that reductions went on unseen.
        """
        assert self._world is not None and len(flags) <= FLAGS
        if not computed:
            self.pass_begins(True, True)
            for gradients in self._gradients:
                gradients[:] = 0
        self._tail[:1 + len(flags)] = [loss_sum, *flags]
        for number, handle in enumerate(self._handles):
            if handle is None:
                self._start(number)
        started = time.perf_counter()
        with tracing.span(tracing.WAIT, "reductions"):
            for number, handle in enumerate(self._handles):
                with tracing.span(tracing.WAIT, "bucket", number):
                    self._carrier(number).finish(self._world, handle[0])
        waited = time.perf_counter() - started
        hidden = max(0.0, self._world.reduced() - self._reduced_before - waited)
        head = self._tail[:1 + FLAGS].tolist()
        return head[0], tuple(head[1:]), waited, hidden

    def finite(self) -> bool:
        """Whether all gradients are finite numbers; the same on all ranks once they are reduced."""
        with np.errstate(all="ignore"):  # a sum is finite only if its terms are, short of an insane overflow
            return all(bool(np.isfinite(gradients.sum())) for gradients in self._gradients)

    def norm(self) -> float:
        """L2 norm over all gradients (the tail left out). Its bits do not depend on the buckets, and so not on stages."""
        with np.errstate(all="ignore"):
            return float(np.sqrt(sum(float(np.dot(g, g)) for g in (view.reshape(-1) for view in self.views))))

    def scale(self, factor: float) -> None:
        """Multiply all gradients by ``factor``."""
        for gradients in self._gradients:
            np.multiply(gradients, gradients.dtype.type(factor), out=gradients)

    def _carrier_of_tail(self) -> np.ndarray:
        return self._flats[-1]

    def _start(self, number: int) -> None:
        assert self._world is not None
        name = f"grad.{number}"
        tracing.queued(name, number)
        # In a tuple: the handle of a world of one process is None.
        self._handles[number] = (self._carrier(number).start(self._world, self._flats[number], name),)
        probe.reached("bucket")

    def _carrier(self, number: int) -> Codec:
        lossless = number >= len(self._plan) or self._plan[number].kind != "float32"
        return PLAIN if lossless else self._codec
