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
        self._type, self._device = _TYPES.get(name), device.type
        self.scale = LossScale(loss_scale) if name == "fp16" else None

    def context(self) -> ContextManager[object]:
        """Within it, forward passes compute in that format where it is sound (torch.autocast's lists)."""
        return nullcontext() if self._type is None else torch.autocast(self._device, dtype=self._type)

    @property
    def factor(self) -> float:
        """What the loss is to be multiplied by before backward."""
        return 1.0 if self.scale is None else self.scale.value
