"""Mixed precision: in which number format the model computes while its weights stay float32."""

from __future__ import annotations

from contextlib import nullcontext
from typing import ContextManager

import torch

from hvtrain.comm.loss_scale import LossScale

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """``name`` is train.precision. ``scale`` is the dynamic loss scale, None unless it is fp16."""

    def __init__(self, name: str, device: torch.device, loss_scale: float):
        self._type, self._device = _TYPES.get(name), device
        self.scale = LossScale(loss_scale) if name == "fp16" else None

    def context(self, device: torch.device | None = None, cache: bool = True) -> ContextManager[object]:
        """Within it, forward passes compute in that format where it is sound (torch.autocast's lists).

        ``device``: another one than usual. ``cache``: weights that are used several times are cast once. PyTorch has one
        such cache for all threads, and empties it whenever one of them leaves: then it depends on timing which
        gradients are added up in which format.
        """
        if self._type is None:
            return nullcontext()
        return torch.autocast((device or self._device).type, dtype=self._type, cache_enabled=cache)

    @property
    def factor(self) -> float:
        """What the loss is to be multiplied by before backward."""
        return 1.0 if self.scale is None else self.scale.value
