"""Forward passes that keep only what they began with, and are done again for backward.

::

    F0      inputs, statistics --kept--> forward; nothing is kept for backward; outputs go on
    B0      inputs, statistics --------> forward again: the same operations, the same random numbers; backward;
            statistics as they were before this second time

The first pass is run with gradients switched on, but what it would save is dropped: so PyTorch takes the same kernels both
times, and the outputs know whether autograd follows them.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Iterator, Sequence

import torch


def _drop(tensor: torch.Tensor) -> None:
    return None


def _missing(nothing: None) -> Any:
    raise AssertionError("backward through a pass whose activations were dropped")


def forgetting() -> Any:
    """Within this context autograd saves nothing."""
    return torch.autograd.graph.saved_tensors_hooks(_drop, _missing)


class Statistics:
    """The buffers that a stage's forward pass changes (running means, say)."""

    def __init__(self, buffers: Sequence[torch.Tensor]):
        self._buffers = list(buffers)

    def copy(self) -> list[torch.Tensor]:
        """As they are."""
        return [buffer.detach().clone() for buffer in self._buffers]

    @contextmanager
    def as_of(self, kept: Sequence[torch.Tensor]) -> Iterator[None]:
        """Within this context they are as ``kept`` has them; whatever happens to them here is undone."""
        now = self.copy()
        self.put_back(kept)
        try:
            yield
        finally:
            self.put_back(now)

    def put_back(self, values: Sequence[torch.Tensor]) -> None:
        """Make them what :meth:`copy` gave."""
        for buffer, value in zip(self._buffers, values):
            buffer.data.copy_(value)  # not the buffer itself: autograd would take it for changed since forward
