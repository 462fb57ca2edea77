"""Horovod for models in plain NumPy: the library that was built for a framework, whichever is installed."""

from __future__ import annotations

import ctypes
import importlib
from functools import cache
from typing import Any

import numpy as np

from hvtrain.engine import host
from hvtrain.engine.cutting import Cutter
from hvtrain.engine.horovod_world import HorovodWorld
from hvtrain.engine.world import Place
from hvtrain.errors import EnvironmentNotReady

FRAMEWORKS = ("torch", "tensorflow")
"""In this order: PyTorch is imported in a fraction of TensorFlow's time."""


@cache
def operations() -> Any:
    """Horovod's module for the first framework that it works with. Raises EnvironmentNotReady if there is none."""
    reasons = []
    for name in FRAMEWORKS:
        try:
            return importlib.import_module(f"horovod.{name}.mpi_ops")
        except ImportError as error:
            reasons.append(f"{name}: {error}")
    raise EnvironmentNotReady(f"Horovod is not usable, with whatever framework ({'; '.join(reasons)}).",
                              "hvtrain engine build")


def library() -> ctypes.CDLL:
    """Its library. Raises EnvironmentNotReady where there is none."""
    return operations()._basics.MPI_LIB_CTYPES  # 0.28.1, the one version that we build


def zeros(elements: int) -> np.ndarray:
    """A float32 vector, in memory that neighbours can read where there is an engine to do so."""
    try:
        engine = library()
    except EnvironmentNotReady:
        engine = None
    return host.zeros(engine, elements)


def world(place: Place, cut: Cutter) -> HorovodWorld:
    """Join the round at ``place``. Raises RoundBroken if it cannot be formed."""
    return HorovodWorld(place, cut, operations(), library())
