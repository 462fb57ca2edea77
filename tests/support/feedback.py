"""A codec with a memory, as small as one can be: what the protocol in ``hvtrain/comm/codecs.py`` must carry."""

from __future__ import annotations

from typing import Any, Mapping

import torch

from hvtrain.adapters.torch.state import from_blob, to_blob
from hvtrain.checkpoint.blob import Blob
from hvtrain.engine.world import World


class Feedback:
    """Keeps the upper ``BITS`` of the sum's mantissa, and adds what that cut off to the sum of the next step.

    The error is that of what all ranks have received, so it is equal on all of them. A step that is broken off, or left
    out, must not change it: it counts from ``commit`` on.
    """

    name, lossy = "feedback", True
    BITS = 4

    def __init__(self) -> None:
        self.errors: dict[str, torch.Tensor] = {}
        self._coming: dict[str, torch.Tensor] = {}

    def start(self, world: World, flat: torch.Tensor, name: str) -> Any:
        return flat, name, world.sum_async(flat, name)

    def finish(self, world: World, handle: Any) -> None:
        flat, name, inner = handle
        world.wait(inner)
        wanted = flat + self.errors.get(name, torch.zeros(()))
        flat.copy_((wanted.view(torch.int32) & ~((1 << (23 - self.BITS)) - 1)).view(torch.float32))
        self._coming[name] = wanted - flat

    def commit(self) -> None:
        self.errors, self._coming = self._coming, {}

    def export(self) -> dict[str, Blob]:
        return {name: to_blob(error) for name, error in self.errors.items()}

    def restore(self, blobs: Mapping[str, Blob]) -> None:
        self.errors = {name: from_blob(blob) for name, blob in blobs.items()}
        self._coming = {}
