"""Forming a round: from a place to a world of the right kind."""

from __future__ import annotations

import ctypes
import threading
from typing import Callable

from hvtrain.engine.cutting import Cutter
from hvtrain.engine.world import Place, SoloWorld, World
from hvtrain.errors import EnvironmentNotReady, RoundBroken

Make = Callable[[Place, Cutter], World]


def _binding(framework: str) -> tuple[ctypes.CDLL, Make]:
    """The engine's library that goes with a framework, and what makes a world of it."""
    if framework == "torch":
        from hvtrain.engine import horovod_torch

        return horovod_torch.library(), horovod_torch.TorchWorld
    if framework == "keras":
        from hvtrain.engine import horovod_tensorflow

        return horovod_tensorflow.library(), horovod_tensorflow.world
    if framework == "numpy":
        from hvtrain.engine import horovod_numpy

        return horovod_numpy.library(), horovod_numpy.world
    raise EnvironmentNotReady(f"this version of hvtrain has no collective operations for {framework}.")


class Forming:
    """One attempt to join the round at ``place``, which another thread can end.

        one thread      run() ------- blocks until all are there -------> World, or RoundBroken
        any other       abandon()     before, during or after run()
    """

    def __init__(self, place: Place, framework: str):
        self._place, self._framework = place, framework
        self._lock = threading.RLock()  # abandon() may come from a signal's handler, in the thread that holds it
        self._abandoned = False
        self._cut: Cutter | None = None

    def run(self) -> World:
        """Form the round. To be called once.

        Raises:
            RoundBroken: a member did not come, or went while the round was forming, or :meth:`abandon` was called.
            EnvironmentNotReady: Horovod is missing or was not built for the framework.
        """
        if self._place.size == 1:
            world: World = SoloWorld()
        else:
            engine, make = _binding(self._framework)
            with self._lock:
                if self._abandoned:
                    raise RoundBroken("the round was called off before it began to form")
                self._cut = Cutter(engine)
            world = make(self._place, self._cut)
        with self._lock:
            if not self._abandoned:
                return world
        world.close()
        raise RoundBroken("the round was called off while it was forming")

    def abandon(self) -> None:
        """End the attempt: :meth:`run` raises within milliseconds, also if it is called later.

        A world that it has returned already is cut. Only the round's own sockets are touched.
        """
        with self._lock:
            self._abandoned = True
            if self._cut is not None:
                self._cut()


def form(place: Place, framework: str) -> World:
    """Join the round at ``place``; what :meth:`Forming.run` does and raises."""
    return Forming(place, framework).run()
