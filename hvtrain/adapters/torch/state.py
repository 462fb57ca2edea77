"""A model's and optimizer's state as framework-neutral tensors, and back."""

from __future__ import annotations

from typing import Any, Mapping

import torch

from hvtrain.checkpoint.blob import Blob
from hvtrain.errors import CheckpointDamaged

_NAMES = {
    torch.float32: "F32", torch.float64: "F64", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


def to_blob(tensor: torch.Tensor, copy: bool = True) -> Blob:
    """A copy of ``tensor`` in host memory: training may go on while it is written. Or a view, without ``copy``."""
    host = tensor.detach().to("cpu", copy=copy).contiguous()
    if host.dtype not in _NAMES:
        raise TypeError(f"tensors of {host.dtype} cannot be stored in a checkpoint")
    if host.numel() == 0:
        return Blob(_NAMES[host.dtype], tuple(host.shape), b"")
    return Blob(_NAMES[host.dtype], tuple(host.shape), host.reshape(-1).view(torch.uint8).numpy().data)


def from_blob(blob: Blob) -> torch.Tensor:
    """A tensor with the blob's content, in memory of its own."""
    dtype = _DTYPES[blob.dtype]
    if blob.nbytes == 0:
        return torch.empty(blob.shape, dtype=dtype)
    return torch.frombuffer(bytearray(blob.data), dtype=torch.uint8).view(dtype).reshape(blob.shape)


def export_module(model: torch.nn.Module, copy: bool = True) -> dict[str, Blob]:
    """All persistent parameters and buffers by name."""
    return {name: to_blob(tensor, copy) for name, tensor in model.state_dict().items() if isinstance(tensor, torch.Tensor)}


def restore_module(model: torch.nn.Module, blobs: Mapping[str, Blob]) -> None:
    """Overwrite a model's parameters and buffers.

    Raises:
        CheckpointDamaged: names or shapes are not the model's.
    """
    own = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, torch.Tensor)}
    _check_names(own, blobs, "model")
    with torch.no_grad():
        for name, tensor in own.items():
            _copy(tensor, blobs[name], name)


def restore_tensors(own: Mapping[str, torch.Tensor], blobs: Mapping[str, Blob], what: str) -> None:
    """Overwrite named tensors in place. Raises CheckpointDamaged if names or shapes differ."""
    _check_names(own, blobs, what)
    with torch.no_grad():
        for name, tensor in own.items():
            _copy(tensor, blobs[name], name)


def parameter_names(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[int, str]:
    """The model's name of each parameter by its number in ``optimizer.state_dict()``."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    ordered = [p for group in optimizer.param_groups for p in group["params"]]
    return {number: names.get(id(p), f"parameter.{number}") for number, p in enumerate(ordered)}


def export_optimizer(model: torch.nn.Module, optimizer: torch.optim.Optimizer, copy: bool = True
                     ) -> tuple[dict[str, Blob], dict[str, Any]]:
    """The optimizer's state: tensors as ``parameter/key``, everything else as JSON-able values."""
    names = parameter_names(model, optimizer)
    tensors: dict[str, Blob] = {}
    values: dict[str, Any] = {}
    for number, entries in optimizer.state_dict()["state"].items():
        for key, value in entries.items():
            place = f"{names[number]}/{key}"
            if isinstance(value, torch.Tensor):
                tensors[place] = to_blob(value, copy)
            else:
                values[place] = value
    return tensors, values


def restore_optimizer(model: torch.nn.Module, optimizer: torch.optim.Optimizer, blobs: Mapping[str, Blob],
                      values: Mapping[str, Any]) -> None:
    """Take back what :func:`export_optimizer` gave. State for parameters that are frozen now is left out.

    Raises:
        CheckpointDamaged: the state belongs to parameters that the model does not have.
    """
    numbers = {name: number for number, name in parameter_names(model, optimizer).items()}
    known = {name for name, _ in model.named_parameters()}
    state: dict[int, dict[str, Any]] = {}
    for place, value in [*((p, from_blob(b)) for p, b in blobs.items()), *values.items()]:
        name, _, key = place.rpartition("/")
        if name in numbers:
            state.setdefault(numbers[name], {})[key] = value
        elif name not in known:
            raise CheckpointDamaged(f"the checkpoint has optimizer state for {name!r}, which the model does not have")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, entries in state.items():
        held = optimizer.state[parameters[number]]
        for key, value in entries.items():  # load_state_dict has cast them to their parameter's type
            if isinstance(value, torch.Tensor) and held[key].dtype != value.dtype:
                held[key] = value.to(held[key].device)


def _check_names(own: Mapping[str, Any], blobs: Mapping[str, Blob], what: str) -> None:
    missing, foreign = sorted(set(own) - set(blobs)), sorted(set(blobs) - set(own))
    if missing or foreign:
        raise CheckpointDamaged(
            f"the checkpoint does not fit this {what}: it lacks {missing[:3] or 'nothing'} and has "
            f"{foreign[:3] or 'nothing'} beside. Was task.args changed since? Start over with checkpoint.resume=never, or undo the change")


def _copy(tensor: torch.Tensor, blob: Blob, name: str) -> None:
    if tuple(tensor.shape) != blob.shape:
        raise CheckpointDamaged(f"the checkpoint's {name!r} has shape {blob.shape}, the model's {tuple(tensor.shape)}. "
                                "Was task.args changed since? Start over with checkpoint.resume=never")
    tensor.copy_(from_blob(blob))
