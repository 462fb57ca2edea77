"""Forming a round: from a place to a world of the right kind."""

from __future__ import annotations

import threading

from hvtrain.engine.cutting import Cutter
from hvtrain.engine.world import Place, SoloWorld, World
from hvtrain.errors import EnvironmentNotReady, RoundBroken


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
        elif self._framework == "torch":
            from hvtrain.engine.horovod_torch import TorchWorld, library

            engine = library()
            with self._lock:
                if self._abandoned:
                    raise RoundBroken("the round was called off before it began to form")
                self._cut = Cutter(engine)
            world = TorchWorld(self._place, self._cut)
        else:
            raise EnvironmentNotReady(f"this version of hvtrain has no collective operations for {self._framework}.")
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
