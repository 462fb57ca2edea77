"""What a task gives for a batch: moved to where it is computed with, and checked."""

from __future__ import annotations

from typing import Any, Mapping

import torch

from hvtrain.errors import UserCodeError
from hvtrain.task import Task


def to_device(batch: Any, device: torch.device) -> Any:
    """``batch`` with its arrays and tensors on ``device``."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True) if device.type != "cpu" else batch
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        moved = [to_device(value, device) for value in batch]
        return type(batch)(*moved) if hasattr(batch, "_fields") else type(batch)(moved)  # a named tuple, or not
    if hasattr(batch, "__array_interface__"):
        return to_device(torch.as_tensor(batch), device)
    return batch


def arguments(task: Task, batch: Any) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """The model's positional arguments and those by name, for ``batch``."""
    inputs = task.inputs(batch)
    if isinstance(inputs, dict):
        return (), inputs
    return tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,), {}


def losses(task: Task, outputs: Any, batch: Any, count: int) -> torch.Tensor:
    """The losses of a batch of ``count`` samples: one for each, or a scalar that is their sum."""
    found = task.loss(outputs, batch)
    if not isinstance(found, torch.Tensor):
        raise UserCodeError(f"Task.loss gave a {type(found).__name__}; it must give a tensor")
    if found.dtype in (torch.float16, torch.bfloat16):  # before they are multiplied and added up
        found = found.float()
    if found.dim() == 0:
        return found * count
    if found.shape != (count,):
        raise UserCodeError(f"Task.loss gave shape {tuple(found.shape)} for a batch of {count} samples; it must "
                            f"give one loss per sample, shape ({count},), or their mean, a scalar. "
                            "With torch's losses: reduction='none', then the mean over what belongs to one sample")
    return found


def total(name: str, value: Any, count: int) -> float:
    """The sum of the metric ``name`` over a batch of ``count`` samples."""
    tensor = torch.as_tensor(value)
    if tensor.dim() == 0:
        return float(tensor) * count
    if tensor.shape != (count,):
        raise UserCodeError(f"Task.metrics gave {name!r} with shape {tuple(tensor.shape)} for a batch of {count} "
                            f"samples; it must be one value per sample, shape ({count},), or a scalar mean")
    return float(tensor.double().sum())
