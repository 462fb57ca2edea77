"""Named points of a worker's life that an observer can stand at: how fault plans reach an exact phase.

Nobody listens in a normal run, and then a point costs one comparison.
"""

from __future__ import annotations

from typing import Callable

PHASES = ("start", "joining", "forming", "state", "forward", "backward", "bucket", "reduced", "optimizer", "committed",
          "evaluation", "checkpoint")
"""In the order in which a worker passes them: its process begins; its model is built; ``init()`` is next; state is
being sent or received; within forward; the first gradient is there; a bucket is in flight; all buckets are reduced;
within the optimizer step; the step is complete; within an evaluation; while a checkpoint is being written."""

_listener: Callable[[str], None] | None = None


def reached(phase: str) -> None:
    """This worker stands at ``phase``, one of :data:`PHASES`."""
    if _listener is not None:
        _listener(phase)


def listen(listener: Callable[[str], None] | None) -> None:
    """Have ``listener`` called at every point from now on; None ends that."""
    global _listener
    _listener = listener
