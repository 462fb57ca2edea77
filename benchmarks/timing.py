"""The callback by which hvtrain's tasks tell the stopwatch of their steps."""

from __future__ import annotations

from typing import Any, Callable

from stopwatch import Stopwatch

from hvtrain import Callback


class Timing(Callback):
    """Tells the stopwatch of every step; ``barrier`` is that of the framework's Horovod."""

    def __init__(self, steps: int, barrier: Callable[[], None]):
        self._steps, self._barrier = steps, barrier

    def on_start(self, moment: Any) -> None:
        self._watch = Stopwatch(moment.rank, self._steps, self._barrier if moment.size > 1 else lambda: None)

    def on_step_end(self, moment: Any) -> None:
        self._watch.step_done(moment.model, moment.optimizer)
