"""Horovod's collectives on PyTorch tensors, with errors of ours."""

from __future__ import annotations

import ctypes
import re
import time
from dataclasses import replace
from typing import Any

import torch

from hvtrain.engine.cutting import Cutter
from hvtrain.engine.reductions import Reductions, Span, coded_name, shared_memory
from hvtrain.engine.world import Place, export
from hvtrain.errors import EnvironmentNotReady, RoundBroken, Unanswered

SHORTEST_PAUSE, LONGEST_PAUSE = 20e-6, 400e-6
"""Seconds between two looks whether a collective operation is over. Each is bounded by ``comm.timeout``."""


def library() -> ctypes.CDLL:
    """Horovod's library for PyTorch. Raises EnvironmentNotReady where there is none."""
    try:
        from horovod.torch import mpi_ops
    except ImportError as error:
        raise EnvironmentNotReady(f"Horovod for PyTorch is not usable: {error}.", "hvtrain engine build") from None
    return mpi_ops._basics.MPI_LIB_CTYPES  # 0.28.1, the one version that we build


def _given(name: str) -> str:
    """The name that a sum was started with, from Horovod's own for it: allreduce.hvtrain_coded_fp16.grad.3 -> grad.3."""
    return re.sub(r"^allreduce\.(hvtrain_coded_[a-z0-9]+\.)?", "", name)


def zeros(elements: int) -> torch.Tensor:
    """A float32 vector on the CPU, in memory that neighbours can read where there is an engine to do so."""
    try:
        memory = shared_memory(library(), 4 * elements)
    except EnvironmentNotReady:
        memory = None
    return torch.zeros(elements) if memory is None else torch.frombuffer(memory, dtype=torch.float32)


class TorchWorld:
    """A round of Horovod processes. Construct it on all members at once; it blocks until all are there.

    ``cut`` is the round's own. Raises RoundBroken if the round cannot be formed.
    """

    def __init__(self, place: Place, cut: Cutter):
        import horovod.torch as hvd
        from horovod.common.exceptions import HorovodInternalError

        self._hvd, self._lost = hvd, HorovodInternalError
        self.rank, self.size, self.local_rank = place.rank, place.size, place.local_rank
        self.timeout, self.waiting, self._cut = place.timeout, False, cut
        self._reductions = Reductions(library())
        export(place)
        try:
            hvd.init()
        except (ValueError, HorovodInternalError) as error:  # the engine's edits turn an abort into ValueError
            raise RoundBroken(f"the round of {place.size} could not be formed: {error}") from None

    def sum_async(self, tensor: Any, name: str, codec: str = "none") -> int:
        try:
            return self._hvd.allreduce_async_(tensor, name=coded_name(name, codec), op=self._hvd.Sum)
        except self._lost as error:
            raise RoundBroken(str(error)) from None

    def noise(self, seed: int) -> None:
        self._reductions.seed(seed)

    def reduced(self) -> float:
        return self._reductions.seconds()

    def record(self, on: bool) -> None:
        self._reductions.record(on)

    def spans(self) -> list[Span]:
        return [replace(span, name=_given(span.name)) for span in self._reductions.spans()]

    def broadcast(self, tensor: Any, root: int, name: str) -> None:
        try:
            handle = self._hvd.broadcast_async_(tensor, root_rank=root, name=name)
        except self._lost as error:
            raise RoundBroken(str(error)) from None
        self.wait(handle)

    def wait(self, handle: int) -> None:
        self.waiting = True
        try:
            # Horovod's own wait (WaitAndClear in torch/mpi_ops_v2.cc, 0.28.1) spins on sched_yield and so takes the
            # core that the reduction needs: on 2 cores an all-reduce takes twice as long beside it.
            pause, deadline = SHORTEST_PAUSE, time.monotonic() + self.timeout
            while not self._hvd.poll(handle):
                if time.monotonic() > deadline:  # Horovod itself waits for a rank that does not come for ever
                    raise Unanswered(
                        f"another rank has not joined a collective operation for comm.timeout ({self.timeout:g} s): it "
                        "hangs in user code, or is that much slower. The logs of the other ranks may tell; a larger "
                        "comm.timeout waits longer")
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            self._hvd.synchronize(handle)
        except self._lost as error:
            raise RoundBroken(str(error)) from None
        finally:
            self.waiting = False

    def cut(self) -> int:
        return self._cut()

    def close(self) -> None:
        self._hvd.shutdown()
