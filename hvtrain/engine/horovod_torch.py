"""Horovod's collectives on PyTorch tensors: those on the CPU are plain memory, those on a GPU are NCCL's."""

from __future__ import annotations

import ctypes
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hvtrain.engine import host
from hvtrain.engine.cutting import Cutter
from hvtrain.engine.horovod_world import HorovodWorld
from hvtrain.engine.reductions import coded_name
from hvtrain.engine.world import Place
from hvtrain.errors import EnvironmentNotReady, RoundBroken

PAUSE = 100e-6
"""Seconds between two looks whether an operation on a GPU is over. Each is bounded by ``comm.timeout``."""


def library() -> ctypes.CDLL:
    """Horovod's library for PyTorch. Raises EnvironmentNotReady where there is none."""
    try:
        from horovod.torch import mpi_ops
    except ImportError as error:
        raise EnvironmentNotReady(f"Horovod for PyTorch is not usable: {error}.", "hvtrain engine build") from None
    return mpi_ops._basics.MPI_LIB_CTYPES  # 0.28.1, the one version that we build


def zeros(elements: int) -> torch.Tensor:
    """A float32 vector on the CPU, in memory that neighbours can read where there is an engine to do so."""
    try:
        engine = library()
    except EnvironmentNotReady:
        engine = None
    return torch.from_numpy(host.zeros(engine, elements))


@dataclass(frozen=True)
class _OnDevice:
    handle: int


class TorchWorld(HorovodWorld):
    """The world of PyTorch tensors, and of NumPy arrays. Raises RoundBroken if the round cannot be formed."""

    def __init__(self, place: Place, cut: Cutter):
        import horovod.torch as hvd

        super().__init__(place, cut, hvd, library())

    def sum_async(self, tensor: torch.Tensor | np.ndarray, name: str, codec: str = "none") -> Any:
        if isinstance(tensor, np.ndarray) or tensor.device.type == "cpu":
            return super().sum_async(_array(tensor), name, codec)
        try:
            return _OnDevice(self._hvd.allreduce_async_(tensor, name=coded_name(name, codec), op=self._hvd.Sum))
        except self._lost as error:
            raise RoundBroken(str(error)) from None

    def broadcast(self, tensor: torch.Tensor | np.ndarray, root: int, name: str) -> None:
        super().broadcast(_array(tensor), root, name)

    def _ended(self, handle: Any, seconds: float) -> bool:
        if not isinstance(handle, _OnDevice):
            return super()._ended(handle, seconds)
        try:
            # Horovod's own wait (WaitAndClear in torch/mpi_ops_v2.cc, 0.28.1) spins on sched_yield.
            deadline = time.monotonic() + seconds
            while not self._hvd.poll(handle.handle):
                if time.monotonic() > deadline:
                    return False
                time.sleep(PAUSE)
            self._hvd.synchronize(handle.handle)
            return True
        except self._lost as error:
            raise RoundBroken(str(error)) from None


def _array(tensor: torch.Tensor | np.ndarray) -> np.ndarray:
    """The memory of a tensor on the CPU."""
    return tensor if isinstance(tensor, np.ndarray) else tensor.detach().numpy()
