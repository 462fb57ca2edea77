"""One graph of two: the model as traced in training and in evaluation mode."""

from __future__ import annotations

import inspect
from typing import Any, Callable, Mapping, Protocol, Sequence

import torch
from torch import fx

from hvtrain.errors import UserCodeError


class Graphed(Protocol):
    graph: fx.Graph
    constants: Mapping[str, torch.Tensor]


class Different(Exception):
    """The graphs differ by more than constants; ``within`` are the paths of the modules being run, outermost first."""

    def __init__(self, what: str, within: Sequence[str]):
        self.within = tuple(within)
        super().__init__(what)


def choose(training: bool, in_training: Any, in_evaluation: Any) -> Any:
    """A constant that depends on the mode."""
    return in_training if training else in_evaluation


def merged(training: Graphed, evaluation: Graphed) -> fx.Graph:
    """The training graph, in which constants that are others in evaluation are chosen by the flag ``training``.

    Raises:
        Different: the graphs do not have the same operations.
    """
    pairs: dict[fx.Node, fx.Node] = {}
    ours, theirs = list(training.graph.nodes), list(evaluation.graph.nodes)
    for node, other in zip(ours, theirs):
        if (node.op, node.target) != (other.op, other.target):
            raise _different(node, other)
        if node.op == "get_attr" and node.target in training.constants:
            if not torch.equal(training.constants[node.target], evaluation.constants[node.target]):
                raise _different(node, other)
        arguments = _merge((node.args, dict(node.kwargs)), (other.args, dict(other.kwargs)), node, other, pairs)
        node.args, node.kwargs = arguments
        pairs[node] = other
    return training.graph


def _merge(ours: Any, theirs: Any, node: fx.Node, other: fx.Node, pairs: Mapping[fx.Node, fx.Node]) -> Any:
    if isinstance(ours, fx.Node) or isinstance(theirs, fx.Node):
        if pairs.get(ours) is not theirs:
            raise _different(node, other)
        return ours
    if isinstance(ours, (tuple, list)) and isinstance(theirs, (tuple, list)):
        if len(ours) != len(theirs):
            raise _different(node, other)
        return type(ours)(_merge(a, b, node, other, pairs) for a, b in zip(list(ours), list(theirs)))
    if isinstance(ours, dict) and isinstance(theirs, dict):
        if ours.keys() != theirs.keys():
            raise _different(node, other)
        return {key: _merge(ours[key], theirs[key], node, other, pairs) for key in ours}
    if isinstance(ours, slice) and isinstance(theirs, slice):
        return slice(*(_merge(getattr(ours, end), getattr(theirs, end), node, other, pairs)
                       for end in ("start", "stop", "step")))
    if type(ours) is type(theirs) and (ours == theirs or ours != ours):
        return ours
    if node.op in ("output", "placeholder"):
        raise _different(node, other)
    with node.graph.inserting_before(node):
        chosen = node.graph.call_function(choose, (node.graph.get_attr("training"), ours, theirs))
    chosen.meta = dict(node.meta)
    return chosen


def _different(node: fx.Node, other: fx.Node) -> Different:
    within = max(node.meta.get("within", ("",)), other.meta.get("within", ("",)), key=len)
    return Different(f"{node.format_node() or node} against {other.format_node() or other}", within)


def rooted(tracer: fx.Tracer, function: Callable[..., Any], args: Sequence[Any] | None,
           named: Mapping[str, Any]) -> tuple[Callable[..., Any], list[Any]]:
    """``function`` of a module and its arguments as proxies: those of the example; constants are guarded.

    None, booleans and texts are burnt in, because models branch on them; another one at run time raises UserCodeError.
    """
    parameters = list(inspect.signature(function).parameters.values())[1:]
    if args is None:
        args = [_REQUIRED for p in parameters if p.default is p.empty and p.kind in _POSITIONAL]
        named = {p.name: _REQUIRED for p in parameters if p.default is p.empty and p.kind is p.KEYWORD_ONLY}
    names = [p.name for p in parameters if p.kind in _POSITIONAL]
    names += [f"input_{number}" for number in range(len(names), len(args))]

    def given(name: str, value: Any) -> Any:
        proxy = tracer.create_proxy("placeholder", name, (), {})
        if value is None or isinstance(value, (bool, str)):
            tracer.create_proxy("call_function", same, (proxy, value, name), {})
            return value
        return proxy

    positional = [given(name, value) for name, value in zip(names, args)]
    keywords = {name: given(name, value) for name, value in named.items()}

    def root(*values: Any) -> Any:
        return function(*values, **keywords)

    return root, [tracer.root, *positional]


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_REQUIRED = object()


def same(value: Any, expected: Any, name: str) -> None:
    """Raises UserCodeError if an argument that the traced model was cut for is another one now."""
    if type(value) is not type(expected) or value != expected:
        raise UserCodeError(f"the model was cut for {name}={expected!r}, but got {value!r}. Such arguments must be the "
                            "same for all batches with hybrid; or give the model a method layers()")
