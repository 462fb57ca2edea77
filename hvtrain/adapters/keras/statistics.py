"""Statistics that the forward pass keeps in variables (BatchNormalization), averaged over the ranks with every step.

Every rank starts a step with equal statistics ``s`` and ends its forward passes with ``s_r``. All take
``s + sum_r w_r (s_r - s)``, where ``w_r`` is the rank's share of the global batch. Constants stay what they
are to the bit, because their difference is zero.
"""

from __future__ import annotations

from typing import Any, Mapping

import numpy as np

from hvtrain.adapters.keras.variables import array


class Statistics:
    """The averaged variables of a model, by name. ``elements`` is their total size."""

    def __init__(self, variables: Mapping[str, Any]):
        self._variables = list(variables.values())
        self.elements = sum(int(np.prod(v.shape)) for v in self._variables)
        self._kept: list[np.ndarray] = []

    def keep(self) -> None:
        """Remember the statistics before a step."""
        self._kept = [array(variable) for variable in self._variables]

    def put_back(self) -> None:
        """Undo what forward passes did since :meth:`keep`: the step did not happen."""
        for kept, variable in zip(self._kept, self._variables):
            variable.assign(kept)

    def write(self, room: np.ndarray, weight: float) -> None:
        """Write this rank's weighted change into ``room``, a flat float32 vector of ``elements``."""
        offset = 0
        for kept, variable in zip(self._kept, self._variables):
            room[offset:offset + kept.size] = ((array(variable, copy=False) - kept) * weight).reshape(-1)
            offset += kept.size

    def adopt(self, room: np.ndarray) -> None:
        """Take the summed changes."""
        offset = 0
        for kept, variable in zip(self._kept, self._variables):
            variable.assign(kept + room[offset:offset + kept.size].reshape(kept.shape).astype(kept.dtype))
            offset += kept.size
