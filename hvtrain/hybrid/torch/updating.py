"""Measures an optimizer's step."""

from __future__ import annotations

from statistics import median

import torch
from torch.utils import _pytree as pytree

from hvtrain.hybrid.torch.walk import clock

ROUNDS = 6
"""Steps of which the median is taken; the first counts for nothing."""


@torch.no_grad()
def update(optimizer: torch.optim.Optimizer, device: torch.device) -> tuple[float, float]:
    """Seconds of a step over all parameters, and bytes of state for each byte of parameters."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    kept = [(p, p.detach().clone(), p.grad) for p in parameters]
    state = {p: pytree.tree_map(lambda v: v.clone() if isinstance(v, torch.Tensor) else v, values)
             for p, values in optimizer.state.items()}
    seconds = []
    try:
        for p in parameters:
            p.grad = torch.zeros_like(p)
        for _ in range(ROUNDS):
            begin = clock(device)
            optimizer.step()
            seconds.append(clock(device) - begin)
        held = sum(leaf.nbytes for leaf in pytree.tree_leaves(list(map(dict, optimizer.state.values())))
                   if isinstance(leaf, torch.Tensor))
    finally:
        optimizer.state.clear()
        optimizer.state.update(state)
        for p, value, gradient in kept:
            p.copy_(value)
            p.grad = gradient
    return median(seconds[1:]), held / max(sum(p.nbytes for p in parameters), 1)
