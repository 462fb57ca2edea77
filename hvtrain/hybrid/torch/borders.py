"""What crosses the border between two stages: any nesting of tensors, cut out of the graph that has made them.

::

    stage s     output ----detach----> leaf     stage s + 1
                  ^                      |
                  +---- its gradient <---+       handed back, and put into backward() of stage s
"""

from __future__ import annotations

import copy
import dataclasses
import numbers
from typing import Any, Callable, NamedTuple

import torch

from hvtrain.errors import Uncuttable

_PLAIN = (type(None), numbers.Number, str, bytes, torch.dtype, torch.device, torch.layout, torch.memory_format, slice,
          range, type(Ellipsis), type)
"""What can hold no tensor."""


class Crossing(NamedTuple):
    """``values`` as a stage has made them, their tensors detached; ``followed`` says of each, in order, whether autograd
    follows it; ``signal`` when they are ready (see :mod:`hvtrain.hybrid.torch.lanes`)."""

    values: Any
    followed: list[bool]
    signal: Any = None


def mapped(value: Any, change: Callable[[torch.Tensor], Any], strict: bool = False) -> Any:
    """``value`` with every tensor in it changed, in a fixed order. Tuples, lists, dicts and dataclasses are looked into.

    If it is to be ``strict``, raises Uncuttable for what might hold tensors unseen.
    """
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, (tuple, list)):
        changed = [mapped(each, change, strict) for each in value]
        return type(value)(*changed) if hasattr(value, "_fields") else type(value)(changed)  # a named tuple, or not
    if type(value) is dict:
        return {key: mapped(each, change, strict) for key, each in value.items()}
    if isinstance(value, dict):
        result = copy.copy(value)
        for key, each in value.items():
            result[key] = mapped(each, change, strict)
        return result
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(value, **{field.name: mapped(getattr(value, field.name), change, strict)
                                             for field in dataclasses.fields(value) if field.init})
    if not strict or isinstance(value, _PLAIN) or hasattr(value, "__array_interface__"):
        return value
    raise Uncuttable(f"a {type(value).__name__} would have to cross the border between two stages, and hvtrain cannot "
                     "see which tensors are in it. Hand tensors on as they are or in tuples, lists, dicts or "
                     "dataclasses, or set hybrid.split so that no border lies there")


def tensors(value: Any) -> list[torch.Tensor]:
    """The tensors in ``value``, in the order of :func:`mapped`."""
    found: list[torch.Tensor] = []

    def take(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor)
        return tensor

    mapped(value, take)
    return found


def crossing(value: Any, signal: Any = None, strict: bool = True) -> Crossing:
    """``value`` on its way to the next stage. Raises as :func:`mapped`."""
    followed: list[bool] = []

    def cut(tensor: torch.Tensor) -> torch.Tensor:
        followed.append(tensor.requires_grad)
        return tensor.detach()

    return Crossing(mapped(value, cut, strict), followed, signal)
