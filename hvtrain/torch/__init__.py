"""Existing PyTorch scripts on hvtrain: ``hvtrain.torch.fit(model, ...)`` in place of the training loop."""

from __future__ import annotations

from hvtrain.torch.training import fit

__all__ = ["fit"]
