"""What a model's modules hold in their attributes, so that tracing leaves nothing behind."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

INNER = ("_parameters", "_buffers", "_modules")


class Attributes:
    """A picture of the attributes of ``model``'s modules, one level deep."""

    def __init__(self, model: nn.Module):
        self._model = model
        self._kept = {path: (module, {name: (value, _copy(value)) for name, value in vars(module).items()})
                      for path, module in model.named_modules()}

    def put_back(self) -> tuple[dict[str, torch.Tensor], tuple[str, str] | None]:
        """Undo all changes.

        Returns:
            The constants that fx has hung on the model, by name, and the path of a module that its own code changed,
            with what it did; None if there is none.
        """
        constants: dict[str, torch.Tensor] = {}
        changed: tuple[str, str] | None = None
        for path, (module, kept) in self._kept.items():
            now = vars(module)
            for name in [name for name in now if name not in kept]:
                value = now.pop(name)
                if module is self._model and name.startswith("_") and "_constant" in name:
                    constants[name] = value
                else:
                    changed = path, f"it sets self.{name}, which tracing cannot record"
            for name, (value, inner) in kept.items():
                if name == "training":
                    continue
                if now.get(name, None) is not value:
                    now[name] = value
                    changed = path, f"it changes self.{name}, which tracing cannot record"
                if inner is not None and not _same(value, inner):
                    _refill(value, inner)
                    what = "its buffers or sub-modules" if name in INNER else f"self.{name}"
                    changed = path, f"it changes {what}, which tracing cannot record"
        return constants, changed


def _copy(value: Any) -> Any:
    return value.copy() if type(value) in (list, dict, set) or type(value).__name__ == "OrderedDict" else None


def _same(value: Any, kept: Any) -> bool:
    if len(value) != len(kept):
        return False
    if isinstance(value, dict):
        return all(name in value and value[name] is kept[name] for name in kept)
    if isinstance(value, set):
        return all(element in value for element in kept)
    return all(a is b for a, b in zip(value, kept))


def _refill(value: Any, kept: Any) -> None:
    value.clear()
    if isinstance(value, list):
        value.extend(kept)
    else:
        value.update(kept)
