"""Measures what the links of a model cost: time forward and backward, bytes of parameters, activations and borders."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any, Callable, ContextManager, Sequence

import torch
from torch import nn
from torch.utils import _pytree as pytree

from hvtrain.adapters.torch.batches import to_device
from hvtrain.errors import UserCodeError
from hvtrain.hybrid.costs import LayerCost, ModelCosts
from hvtrain.hybrid.torch import checking, links, tracing, updating
from hvtrain.hybrid.torch.chain import Chain, chain, whole
from hvtrain.hybrid.torch.walk import Walk
from hvtrain.task import Task


def measure(model: nn.Module | Chain, task: Task, batch: Any, count: int, device: torch.device | str,
            optimizer: torch.optim.Optimizer | None = None,
            context: Callable[[], ContextManager[Any]] = nullcontext, *, uncut: bool = False, sizes: Sequence[int] = (),
            room: float = math.inf, gate: Callable[[], None] = lambda: None) -> tuple[ModelCosts, ...]:
    """What each link costs with the first samples of ``batch``, which has ``count``; the loss belongs to the last one.

    Weights, buffers, gradients, random numbers and the optimizer are afterwards what they were before. A parameter that
    several links use, and a tensor that several keep for backward, counts for the first.

    Args:
        model: on ``device``, whole.
        optimizer: over the model's parameters; its step and the size of its state are measured.
        context: what forward runs in, such as autocast.
        uncut: measure a model that cannot be cut as one layer, instead of raising.
        sizes: numbers of samples to measure with, ascending; empty for ``count``. One answer comes for each, but for those
            at the end whose activations would take more than ``room`` bytes, or whose passes would take very long.
        gate: called before what is to be done at the same time by all processes that measure.

    Raises:
        UserCodeError: the model cannot be cut, or its loss is none.
    """
    device = torch.device(device)
    batch = to_device(batch, device)
    parts = [(_first(batch, count, size), size) for size in sizes or (count,)]
    cut = model if isinstance(model, Chain) else _chain(model, task, parts[0][0], uncut)
    run = Walk(cut, task, device, context)
    with checking.unchanged(cut.model) as put_back, tracing.in_mode(cut.model, True):
        for link in cut.links:
            links.follow(link, cut.model)
        saved, outputs, given = run.sizes(*parts[0])
        sample = (sum(saved) + sum(outputs) + given) / parts[0][1]
        parts = parts[:1] + [part for part in parts[1:] if part[1] * sample <= room]
        gate()
        times = run.times(parts)
        bytes_of = [run.sizes(*part) for part, _ in zip(parts, times)]
        put_back()
    for link in cut.links:
        links.follow(link, cut.model)
    gate()
    update, state = (0.0, 0.0) if optimizer is None else updating.update(optimizer, device)
    parameters = _parameter_bytes(cut)
    return tuple(
        ModelCosts(tuple(map(LayerCost, cut.names, forward, backward, parameters, saved, outputs)), size, str(device), state,
                   update, overhead, given)
        for (_, size), (forward, backward, overhead), (saved, outputs, given) in zip(parts, times, bytes_of))


def _chain(model: nn.Module, task: Task, batch: Any, uncut: bool) -> Chain:
    with checking.unchanged(model):
        inputs = task.inputs(batch)
    try:
        return chain(model, inputs)
    except UserCodeError:
        if not uncut:
            raise
        return whole(model)


def _first(batch: Any, count: int, few: int) -> Any:
    """The first samples of a batch, wherever an array in it has one for each."""
    return pytree.tree_map(
        lambda leaf: leaf[:few] if getattr(leaf, "shape", ()) and len(leaf) == count else leaf, batch)


def _parameter_bytes(cut: Chain) -> list[int]:
    known: set[int] = set()
    result = []
    for link in cut.links:
        new = {id(p): p for p in link.parameters() if id(p) not in known}
        known |= new.keys()
        result.append(sum(p.nbytes for p in new.values()))
    return result
