"""Dynamic loss scaling for float16 (Micikevicius et al., Mixed Precision Training, 2018), without any framework.

Gradients below 6e-8 vanish in half precision, so the loss is multiplied before backward and the gradients are divided
after their reduction. What is too large becomes infinite, on all ranks alike because they hold the same sums: then
the step is left out and the scale is halved; after ``GROWTH_INTERVAL`` good steps it is doubled.
"""

from __future__ import annotations

import math
from typing import Any, Callable, Mapping

from hvtrain.errors import Diverged

INITIAL = 2.0**16
GROWTH_INTERVAL = 2000
LARGEST = 2.0**32
"""Enough for any gradient that half precision could lose; squares of scaled gradients stay within float32."""
SMALLEST = 2.0**-14
"""Where halving does not help any more: the gradients are not finite for another reason."""


class LossScale:
    """``value`` is a power of two: multiplying by it, and dividing, changes no bit of what stays in range."""

    def __init__(self, value: float = INITIAL):
        self.value, self._good = value, 0

    def overflown(self, loss: float, finite: Callable[[], bool]) -> bool:
        """Whether half precision was too narrow for a step: its reduced ``loss``, or gradients, are not ``finite``.

        Raises:
            Diverged: they are not, however small the scale is.
        """
        if math.isfinite(loss) and finite():
            return False
        if self.exhausted:
            raise Diverged("the gradients are not finite, however small the loss scale. Nothing of this step was "
                           "applied. Set train.precision=bf16 or fp32, lower optim.lr, or look at the data")
        return True

    def good(self) -> None:
        """A step was applied."""
        self._good += 1
        if self._good >= GROWTH_INTERVAL:
            self.value, self._good = min(2 * self.value, max(self.value, LARGEST)), 0

    def overflow(self) -> None:
        """A step was left out."""
        self.value, self._good = self.value / 2, 0

    @property
    def exhausted(self) -> bool:
        return self.value < SMALLEST

    def export(self) -> dict[str, Any]:
        return {"value": self.value, "good": self._good}

    def restore(self, values: Mapping[str, Any]) -> None:
        self.value, self._good = float(values["value"]), int(values["good"])
