"""What a checkpoint holds, in memory."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Mapping

from hvtrain.checkpoint.blob import Blob
from hvtrain.errors import UsageError, UserCodeError

# Also what a manifest's file names are made of: no separators, no dots, so no way out of the directory.
GROUP_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_MAX_DEPTH = 64


@dataclass(frozen=True)
class Snapshot:
    """Everything that exact continuation needs, after ``step`` completed steps.

    ``groups`` maps a group ("model", "optimizer", "ema", ...) to its tensors by name; each group becomes one
    safetensors file. ``state`` is everything else and must be JSON: it is copied here, so later changes by
    the caller do not show; tuples become lists. ``state["cursor"]``, if there, is the position in the epoch
    in samples. Tensors are *not* copied.

    Raises UsageError for a bad step or group, UserCodeError for state that JSON cannot hold.
    """

    step: int
    epoch: int
    groups: Mapping[str, Mapping[str, Blob]]
    state: dict[str, Any] = field(default_factory=dict)
    world_size: int = 1
    metrics: dict[str, float] = field(default_factory=dict)
    framework: str = "torch"

    def __post_init__(self) -> None:
        if self.step < 0 or self.epoch < 0 or self.world_size < 1:
            raise UsageError("A snapshot needs step >= 0, epoch >= 0 and world_size >= 1; got step "
                             f"{self.step}, epoch {self.epoch}, world_size {self.world_size}.")
        for name in self.groups:
            if not GROUP_NAME.fullmatch(name):
                raise UsageError("A tensor group's name must be up to 64 letters, digits, '_' or '-'; "
                                 f"got {name!r}.")
        if not isinstance(self.state, dict):
            raise UsageError(f"A snapshot's state must be a dict; got {type(self.state).__name__}.")
        object.__setattr__(self, "groups", {name: dict(blobs) for name, blobs in self.groups.items()})
        object.__setattr__(self, "state", plain(self.state))
        object.__setattr__(self, "metrics", {str(key): float(value) for key, value in self.metrics.items()})

    @property
    def cursor(self) -> int:
        """Samples of the epoch that are used up, from the state; 0 if it does not say."""
        cursor = self.state.get("cursor", 0)
        return cursor if type(cursor) is int and cursor >= 0 else 0

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(blob.nbytes for blobs in self.groups.values() for blob in blobs.values())


def plain(value: Any, path: str = "state", depth: int = 0) -> Any:
    """A deep copy of ``value`` made of dicts, lists, strings, numbers, booleans and None only.

    Raises UserCodeError, naming the path, for anything that would not come back from JSON as it was.
    """
    if depth > _MAX_DEPTH:
        raise UserCodeError(f"{path}: nested deeper than {_MAX_DEPTH} levels; does it contain itself?")
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise UserCodeError(f"{path}: keys of saved state must be strings, as in JSON; got {key!r}. "
                                    "Use str(key) when saving and convert back when loading.")
        return {str(key): plain(item, f"{path}.{key}", depth + 1) for key, item in value.items()}
    raise UserCodeError(f"{path}: saved state must be JSON (dict, list, str, int, float, bool, None); got "
                        f"{type(value).__name__}. Use .item() or .tolist() for numbers and small arrays; "
                        "put tensors into a group.")
