"""Statistics that the forward pass keeps in buffers (BatchNorm), averaged over the ranks with every step.

Every rank starts a step with equal statistics ``s`` and ends its forward passes with ``s_r``. All take
``s + sum_r w_r (s_r - s)``, where ``w_r`` is the rank's share of the global batch. Constants stay what they
are to the bit, because their difference is zero.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Sequence

import torch
from torch.nn.modules.batchnorm import _NormBase

from hvtrain.errors import UserCodeError


class Statistics:
    """The averaged buffers of a model. ``elements`` is their total size, ``buffers`` are they and their counters.

    Args:
        patterns: names of further buffers to average (globs), from ``Task.averaged_buffers``.
    """

    def __init__(self, model: torch.nn.Module, patterns: Sequence[str]):
        normal = {f"{name}.{buffer}".lstrip(".") for name, module in model.named_modules()
                  if isinstance(module, _NormBase) for buffer, _ in module.named_buffers(recurse=False)}
        self._floats: list[torch.Tensor] = []
        self._counters: list[torch.Tensor] = []
        self._others: list[tuple[str, torch.Tensor, int]] = []
        for name, buffer in model.named_buffers():
            if buffer.is_floating_point() and (name in normal or any(fnmatchcase(name, p) for p in patterns)):
                self._floats.append(buffer)
            elif name in normal:
                self._counters.append(buffer)
            else:  # whole numbers that a pattern happens to match (position ids, say) cannot be averaged
                self._others.append((name, buffer, buffer._version))
        self.elements = sum(buffer.numel() for buffer in self._floats)
        self.device = self._floats[0].device if self._floats else None
        self.buffers = [*self._floats, *self._counters]
        self._kept = [torch.empty_like(buffer) for buffer in self._floats]
        self._kept_counters = [torch.empty_like(buffer) for buffer in self._counters]

    def keep(self) -> None:
        """Remember the statistics before a step."""
        for kept, buffer in zip(self._kept + self._kept_counters, self._floats + self._counters):
            kept.copy_(buffer)

    def put_back(self) -> None:
        """Undo what forward passes did since :meth:`keep`: the step did not happen."""
        for kept, buffer in zip(self._kept + self._kept_counters, self._floats + self._counters):
            buffer.copy_(kept)

    def write(self, room: torch.Tensor, weight: float) -> None:
        """Write this rank's weighted change into ``room``, a flat float32 tensor of ``elements``."""
        offset = 0
        for kept, buffer in zip(self._kept, self._floats):
            part = room[offset:offset + buffer.numel()]
            part.copy_((buffer - kept).flatten().mul_(weight))
            offset += buffer.numel()

    def adopt(self, room: torch.Tensor) -> None:
        """Take the summed changes; counters advance by one, whatever the number of ranks."""
        offset = 0
        for kept, buffer in zip(self._kept, self._floats):
            change = room[offset:offset + buffer.numel()].view_as(buffer).to(buffer.device, buffer.dtype)
            torch.add(kept, change, out=buffer)
            offset += buffer.numel()
        for kept, buffer in zip(self._kept_counters, self._counters):
            torch.add(kept, 1, out=buffer)

    def refresh(self) -> None:
        """Take the buffers as they are for unchanged: a checkpoint has just been loaded into them."""
        self._others = [(name, buffer, buffer._version) for name, buffer, _ in self._others]

    def check_others(self) -> None:
        """Raise UserCodeError if forward changed a buffer that is not averaged: ranks would drift apart."""
        for name, buffer, version in self._others:
            if buffer._version != version:
                remedy = (f"Have it averaged: averaged_buffers = [{name!r}] in your Task" if buffer.is_floating_point()
                          else f"It holds {buffer.dtype}, which cannot be averaged: make it a floating-point tensor")
                raise UserCodeError(f"the forward pass changed the buffer {name!r}, which only normalisation layers' "
                                    "buffers may without further notice, because the ranks' copies would drift "
                                    f"apart. {remedy}")
