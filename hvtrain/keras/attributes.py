"""What of a Keras callback can be kept as JSON, and the model as callbacks see it that must not save it."""

from __future__ import annotations

from typing import Any, Mapping

import numpy as np
from keras import callbacks as known

LEFT_OUT = {"params", "model", "_model",
            "monitor_op", "min_delta",  # the first comparison sets the one, and the other's sign (MonitorCallback)
            "append", "append_header"}  # what CSVLogger finds out about its file when it begins


def read(callback: Any) -> dict[str, Any]:
    """``{"class": name, "values": {attribute: value}}`` with all that JSON can hold."""
    values = {name: plain(value) for name, value in vars(callback).items() if name not in LEFT_OUT and _fits(value)}
    if isinstance(callback, known.CSVLogger):
        values = {"keys": values.get("keys")}
    return {"class": type(callback).__name__, "values": values}


def write(callback: Any, saved: Mapping[str, Any]) -> bool:
    """Take back what :func:`read` gave; False if that was of another class."""
    if saved["class"] != type(callback).__name__:
        return False
    for name, value in saved["values"].items():
        old = getattr(callback, name, None)
        setattr(callback, name, tuple(value) if isinstance(old, tuple) and isinstance(value, list) else plain(value))
    return True


def plain(value: Any) -> Any:
    """A copy of a value that JSON can hold."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _fits(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(name, str) and _fits(inner) for name, inner in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_fits, value))
    return value is None or isinstance(value, (bool, int, float, str, np.bool_, np.integer, np.floating))


class Unsaved:
    """A model that does everything but save itself."""

    def __init__(self, model: Any):
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_model":
            object.__setattr__(self, name, value)
        else:
            setattr(self._model, name, value)

    def save(self, *arguments: Any, **more: Any) -> None:
        """Rank 0 does it."""

    save_weights = export = save
