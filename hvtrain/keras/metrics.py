"""Metrics of ``model.compile`` over all workers: every Keras metric is a function of sums over the samples.

::

    rank 0: update(batch) ... --> variables --+
    rank 1: update(batch) ... --> variables --+-- sum --> result()      AUC, Precision, IoU ... are exact, too
"""

from __future__ import annotations

from typing import Any, Sequence

import numpy as np

from hvtrain.errors import UserCodeError
from hvtrain.keras.data import unpacked


class Additive:
    """The compiled metrics, whose variables are added up.

    That is right for every metric of Keras. One of your own must keep sums as well, such as a total and a count.
    """

    def __init__(self, metrics: Any):
        self._metrics = metrics

    def build(self, outputs: Any, batch: Any) -> None:
        """Make the variables, from one batch, and leave them at zero."""
        self.update(outputs, batch)
        self._metrics.reset_state()

    def update(self, outputs: Any, batch: Any) -> None:
        """Take in a batch; also within a graph."""
        _, targets, weights = unpacked(batch)
        self._metrics.update_state(targets, outputs, sample_weight=weights)

    def reset(self) -> None:
        """Begin anew."""
        self._metrics.reset_state()

    def state(self) -> list[float]:
        """All variables as one vector."""
        return [float(number) for variable in self._metrics.variables for number in np.ravel(variable.numpy())]

    def result(self, state: Sequence[float]) -> dict[str, float]:
        """The metrics by name for a sum of states."""
        numbers = np.asarray(state, np.float64)
        begin = 0
        for variable in self._metrics.variables:
            size = int(np.prod(variable.shape))
            variable.assign(numbers[begin:begin + size].reshape(variable.shape).astype(variable.numpy().dtype))
            begin += size
        values = {name: np.asarray(value) for name, value in self._metrics.result().items()}
        several = [name for name, value in values.items() if value.size != 1]
        if several:
            raise UserCodeError(f"the metric {several[0]!r} gives {values[several[0]].size} values; it must give one "
                                "number, for instance by average='macro'")
        return {name: float(value) for name, value in values.items()}
