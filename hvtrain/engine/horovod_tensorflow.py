"""Horovod's library for TensorFlow. Its operations take NumPy arrays here: see :mod:`hvtrain.engine.horovod_world`."""

from __future__ import annotations

import ctypes

import numpy as np

from hvtrain.engine import host
from hvtrain.engine.cutting import Cutter
from hvtrain.engine.horovod_world import HorovodWorld
from hvtrain.engine.world import Place
from hvtrain.errors import EnvironmentNotReady


def library() -> ctypes.CDLL:
    """Horovod's library for TensorFlow. Raises EnvironmentNotReady where there is none."""
    try:
        from horovod.tensorflow import mpi_ops
    except ImportError as error:
        raise EnvironmentNotReady(f"Horovod for TensorFlow is not usable: {error}.", "hvtrain engine build") from None
    return mpi_ops._basics.MPI_LIB_CTYPES  # 0.28.1, the one version that we build


def zeros(elements: int) -> np.ndarray:
    """A float32 vector, in memory that neighbours can read where there is an engine to do so."""
    try:
        engine = library()
    except EnvironmentNotReady:
        engine = None
    return host.zeros(engine, elements)


def world(place: Place, cut: Cutter) -> HorovodWorld:
    """Join the round at ``place``. Raises RoundBroken if it cannot be formed."""
    from horovod.tensorflow import mpi_ops

    return HorovodWorld(place, cut, mpi_ops, library())
