"""Existing Keras scripts on hvtrain: ``hvtrain.keras.fit(model, ...)`` in place of ``model.fit(...)``."""

from __future__ import annotations

from hvtrain.keras.training import fit

__all__ = ["fit"]
