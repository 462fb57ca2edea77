"""Mixed precision: in which number format a Keras model computes while its weights stay float32."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Iterator

import keras

from hvtrain.comm.loss_scale import LossScale

_POLICIES = {"fp32": "float32", "bf16": "mixed_bfloat16", "fp16": "mixed_float16"}


class Precision:
    """``name`` is train.precision. ``scale`` is the dynamic loss scale, None unless it is fp16."""

    def __init__(self, name: str, loss_scale: float):
        self._policy = _POLICIES[name]
        self.scale = LossScale(loss_scale) if name == "fp16" else None

    @contextmanager
    def policy(self) -> Iterator[None]:
        """Within it, layers are made that compute in that format; with fp32, in what the task itself has set."""
        before = keras.config.dtype_policy()
        if self._policy != "float32":
            keras.config.set_dtype_policy(self._policy)
        try:
            yield
        finally:
            keras.config.set_dtype_policy(before)

    @property
    def factor(self) -> float:
        """What the loss is to be multiplied by before backward."""
        return 1.0 if self.scale is None else self.scale.value
