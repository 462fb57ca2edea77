"""Are the weights of two checkpoints the same, and if not, how far are they apart?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Mapping

from hvtrain.checkpoint.blob import Blob
from hvtrain.checkpoint.snapshot import Snapshot
from hvtrain.checkpoint.store import Store
from hvtrain.errors import UsageError


@dataclass(frozen=True)
class Comparison:
    """``differing`` lists the groups of tensors that are not equal to the bit, of all ``groups``.

    ``largest`` is the largest absolute difference within the group model, found in ``tensor``; None where there is no
    such number. ``problem`` says why nothing could be compared, and is empty otherwise.
    """

    groups: tuple[str, ...] = ()
    differing: tuple[str, ...] = ()
    largest: float | None = 0.0
    tensor: str = ""
    problem: str = ""

    @property
    def identical(self) -> bool:
        return not self.problem and not self.differing

    @property
    def words(self) -> str:
        if self.problem:
            return f"not comparable: {self.problem}"
        if self.identical:
            return f"identical to the bit ({', '.join(self.groups)})"
        where = f", in {self.tensor}" if self.tensor else ""
        largest = "not a number" if self.largest is None else f"{self.largest:.3g}"
        return f"differ ({', '.join(self.differing)}); largest difference of a weight {largest}{where}"


def compare(left: Path, right: Path) -> Comparison:
    """Compare the newest checkpoints in two directories of checkpoints."""
    found = [Store(path).load_newest() for path in (left, right)]
    for path, pair in zip((left, right), found):
        if pair is None:
            return Comparison(problem=f"there is no sound checkpoint in {path}")
    return compare_snapshots(*(pair[1] for pair in found if pair is not None))


def compare_snapshots(left: Snapshot, right: Snapshot) -> Comparison:
    """Compare all tensors of two snapshots of the same step."""
    if left.step != right.step:
        return Comparison(problem=f"one run has saved step {left.step}, the other step {right.step}")
    groups = tuple(sorted({*left.groups, *right.groups}))
    differing = tuple(group for group in groups if not _same(left.groups.get(group), right.groups.get(group)))
    if not differing:
        return Comparison(groups)
    largest, tensor = _largest(left.groups.get("model", {}), right.groups.get("model", {}))
    return Comparison(groups, differing, largest, tensor)


def _same(left: Mapping[str, Blob] | None, right: Mapping[str, Blob] | None) -> bool:
    if left is None or right is None or left.keys() != right.keys():
        return False
    return all((blob.dtype, blob.shape) == (right[name].dtype, right[name].shape) and blob.data == right[name].data
               for name, blob in left.items())


def _largest(left: Mapping[str, Blob], right: Mapping[str, Blob]) -> tuple[float | None, str]:
    """The largest difference and where it is; None at the first tensor that has none."""
    largest, where = 0.0, ""
    for name in sorted({*left, *right}):
        apart = _apart(left.get(name), right.get(name))
        if apart is None:
            return None, name
        if apart > largest:
            largest, where = apart, name
    return largest, where


def _apart(left: Blob | None, right: Blob | None) -> float | None:
    import numpy as np

    if left is None or right is None or left.shape != right.shape:
        return None
    try:
        one, other = left.to_numpy(), right.to_numpy()
    except UsageError:  # bfloat16 without the package that numpy needs for it
        return None
    if one.size == 0 or np.array_equal(one, other):
        return 0.0
    wide = np.complex128 if one.dtype.kind == "c" else np.float64
    apart = float(np.abs(one.astype(wide) - other.astype(wide)).max())
    return apart if math.isfinite(apart) else None
