"""Links: what a model is cut into. Each is a module that takes what the one before it gives.

::

    inputs --link 0--> (a, b) --link 1--> c --link 2--> outputs       a tuple is spread over the next link's arguments
"""

from __future__ import annotations

import operator
from contextlib import nullcontext
from typing import Any, Callable, Container, ContextManager, Iterator, Sequence

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

Around = Callable[[int], ContextManager[Any]]
"""Makes the context in which the link with this number runs."""


def spread(value: Any) -> tuple[Any, ...]:
    """What a link gave, as the positional arguments of the next one."""
    return value if type(value) is tuple else (value,)


def run(links: Sequence[nn.Module], first: int, inputs: tuple[Any, ...], named: dict[str, Any] | None = None,
        around: Around | None = None, packed: Container[int] = ()) -> Any:
    """Run ``links``, the first of which has the number ``first``, one after another; gives what the last one gives.

    ``packed`` are the numbers of links that take a tuple as it is, as one argument, as layers of ``nn.Sequential`` do.
    """
    named = named or {}
    given = inputs
    for number, link in enumerate(links, first):
        with nullcontext() if around is None else around(number):
            value = link(*given, **named)
        given, named = (value,) if number + 1 in packed else spread(value), {}
    return value


class Call(nn.Module):
    """A function without parameters as a link."""

    def __init__(self, function: Callable[..., Any]):
        super().__init__()
        self._function = function

    def forward(self, *inputs: Any) -> Any:
        return self._function(*inputs)


class Traced(fx.GraphModule):
    """Consecutive operations of a traced model."""


def has_hooks(module: nn.Module) -> bool:
    """Whether something runs before or after the module's own ``forward``."""
    return any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks))


def is_sequential(module: nn.Module) -> bool:
    """Whether calling ``module`` is nothing but calling its children one after another."""
    return (isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
            and type(module).__call__ is nn.Module.__call__ and not has_hooks(module))


def has_layers(module: nn.Module) -> bool:
    """Whether ``module`` has a method ``layers()``; an attribute of that name, such as a ModuleList, is none."""
    return callable(getattr(type(module), "layers", None))


def flattened(module: nn.Sequential, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The layers of ``module`` and of every plain Sequential in it, by name; a layer used twice comes twice."""
    for name, child in module._modules.items():
        if child is None:
            continue
        if is_sequential(child):
            yield from flattened(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child


def follow(link: nn.Module, model: nn.Module) -> None:
    """Give a link that is no module of the model the model's mode."""
    if isinstance(link, (Call, Traced)):
        link.training = model.training


def works_in_place(link: nn.Module) -> bool:
    """Whether the link says so itself: a module with ``inplace=True``, or an operation whose name ends with ``_``."""
    if any(getattr(module, "inplace", False) is True for module in link.modules()):
        return True
    return isinstance(link, Traced) and any(_is_in_place(node) for node in link.graph.nodes)


def _is_in_place(node: fx.Node) -> bool:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if node.op == "call_method":
        return name.endswith("_") and not name.endswith("__")
    augmented = name.startswith("i") or name == "setitem"  # operator.iadd and its like
    return node.op == "call_function" and (node.kwargs.get("inplace") is True or (
        augmented and getattr(operator, name, None) is node.target) or (name.endswith("_") and not name.startswith("_")))


def clones(values: Any) -> Any:
    """``values`` with copies of their tensors, so that a link may work in place on them."""
    return pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, values)
