"""Forming a round: from a place to a world of the right kind."""

from __future__ import annotations

from hvtrain.engine.world import Place, SoloWorld, World
from hvtrain.errors import EnvironmentNotReady


def form(place: Place, framework: str) -> World:
    """Join the round at ``place``.

    Raises:
        RoundBroken: a member did not come, or went while the round was forming.
        EnvironmentNotReady: Horovod is missing or was not built for ``framework``.
    """
    if place.size == 1:
        return SoloWorld()
    if framework == "torch":
        from hvtrain.engine.horovod_torch import TorchWorld

        return TorchWorld(place)
    raise EnvironmentNotReady(f"this version of hvtrain has no collective operations for {framework}.")
