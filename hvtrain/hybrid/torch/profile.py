"""Measures what the links of a model cost: time forward and backward, bytes of parameters, activations and borders."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Callable, ContextManager

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
            context: Callable[[], ContextManager[Any]] = nullcontext, *, uncut: bool = False) -> ModelCosts:
    """What each link costs with ``batch`` of ``count`` samples; the loss belongs to the last one.

    Weights, buffers, gradients, random numbers and the optimizer are afterwards what they were before. A parameter that
    several links use, and a tensor that several keep for backward, counts for the first.

    Args:
        model: on ``device``, whole.
        optimizer: over the model's parameters; its step and the size of its state are measured.
        context: what forward runs in, such as autocast.
        uncut: measure a model that cannot be cut as one layer, instead of raising.

    Raises:
        UserCodeError: the model cannot be cut, or its loss is none.
    """
    device = torch.device(device)
    batch = to_device(batch, device)
    cut = model if isinstance(model, Chain) else _chain(model, task, batch, uncut)
    run = Walk(cut, task, device, context)
    with checking.unchanged(cut.model) as put_back, tracing.in_mode(cut.model, True):
        for link in cut.links:
            links.follow(link, cut.model)
        half = count // 2 if count > 3 else 0  # normalisation needs two samples
        sizes = [(batch, count), (_first(batch, count, half), half)] if half else [(batch, count)]
        (forward, backward, overhead), *small = run.times(sizes)
        slope = 1.0
        for forward_small, backward_small, _ in small:
            part = sum((*forward_small, *backward_small)) / sum((*forward, *backward))
            slope = min(max((1 - part) / (1 - half / count), 0.0), 1.0)
        saved, outputs, given = run.sizes(batch, count)
        put_back()
    for link in cut.links:
        links.follow(link, cut.model)
    update, state = (0.0, 0.0) if optimizer is None else updating.update(optimizer, device)
    columns = cut.names, forward, backward, _parameter_bytes(cut), saved, outputs
    layers = tuple(LayerCost(*values) for values in zip(*columns))
    return ModelCosts(layers, count, str(device), state, update, overhead, slope, given)


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
