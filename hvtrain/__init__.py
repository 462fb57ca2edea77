"""hvtrain: fault-tolerant training on Horovod, for PyTorch and Keras 3.

Importing this package loads neither a framework nor Horovod; the names below are resolved on first use.
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

_EXPORTS = {
    "Task": "hvtrain.task",
    "Callback": "hvtrain.callbacks",
    "Moment": "hvtrain.callbacks",
    "Trainer": "hvtrain.trainer",
    "Job": "hvtrain.config",
    "ArraySource": "hvtrain.data",
    "is_first": "hvtrain.hosting",
}

__all__ = [*_EXPORTS, "__version__"]


def __getattr__(name: str):
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    if name in ("keras", "torch"):  # hvtrain.keras.fit, hvtrain.torch.fit
        return importlib.import_module(f"hvtrain.{name}")
    raise AttributeError(f"module 'hvtrain' has no attribute {name!r}; it has {', '.join(sorted(__all__))}")


def __dir__() -> list[str]:
    return sorted(__all__)
