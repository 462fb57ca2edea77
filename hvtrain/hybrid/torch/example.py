"""An example of what a model is called with, for those whose ``forward`` alone does not tell."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from hvtrain.adapters.torch.batches import to_device
from hvtrain.data import as_source
from hvtrain.data.loader import Loader
from hvtrain.hybrid.torch import links
from hvtrain.task import Task

FEW = 2
"""Samples of the training data."""


def is_needed(model: nn.Module) -> bool:
    """Whether tracing ``model`` depends on which of its arguments are given."""
    if links.is_sequential(model) or links.has_layers(model):
        return False
    parameters = list(inspect.signature(type(model).forward).parameters.values())[1:]
    return any(p.default is not p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)


def inputs(task: Task) -> Any:
    """What ``task.inputs`` gives for the first samples of the training data, on the processor."""
    source = as_source(task.data("train"))
    with torch.random.fork_rng(devices=[]), Loader(source, task.collate, 0, 1, 0) as loader:
        batch, _ = loader.example(min(FEW, len(source)))
        return task.inputs(to_device(batch, torch.device("cpu")))
