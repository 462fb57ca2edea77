"""From the graph of a model to links: where the graph is cut, and the small graph modules that it falls into.

::

    nodes     embed   q k v   attention   proj   add   norm   fc1   gelu   fc2   add   head
    heavy       *     * * *       *        *                   *            *            *
    live          1   2 3 4       2        2     1      2      2     2     2     1          values that cross
    cut           |                              |                               |          narrowest, then latest

A link begins at each heavy operation: one with a matrix of weights, or a product of two activations. Between two of
them it is cut where the fewest values cross, and not at all where few operations away on either side fewer do, unless
that would make too large a part of the model one link. So a residual block stays together, and long skip connections
are handed on from link to link.
"""

from __future__ import annotations

import itertools
import operator
from typing import Any, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import fx, nn

from hvtrain.hybrid.torch import links as linking
from hvtrain.hybrid.torch.tracing import Traced

NEAR = 4
"""A cut is left out if there are narrower ones within so many cuts before and behind it."""
LARGEST = 0.25
"""No link is made of more than this part of all heavy operations, so that small models can be cut as well."""
Span = tuple[int, int]
PRODUCTS = frozenset((torch.matmul, torch.bmm, torch.einsum, torch.baddbmm, operator.matmul,
                      F.scaled_dot_product_attention, "matmul", "bmm", "baddbmm"))


def links(model: nn.Module, traced: Traced, near: int | None = NEAR) -> tuple[list[nn.Module], list[str]]:
    """The links of ``model`` and their names; ``near=0``: one for each heavy operation, None: one for all."""
    graph = traced.graph
    _pull_items_up(graph)
    nodes = [node for node in graph.nodes if node.op not in ("placeholder", "get_attr", "output")]
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    output = next(node for node in graph.nodes if node.op == "output")
    place = {node: number for number, node in enumerate(nodes)}
    last = {node: max((place.get(user, len(nodes)) for user in node.users), default=-1) for node in (*inputs, *nodes)}
    spans = [(place.get(node, -1) + 1, end) for node, end in last.items()]
    cuts = [] if near is None else _cuts(nodes, spans, [is_heavy(model, node) for node in nodes], near)
    live = {cut: [v for v in last if place.get(v, -1) < cut <= last[v]] for cut in cuts}
    objects = _Objects(model, traced.constants)
    made, names = [], []
    for begin, end in zip([0, *cuts], [*cuts, len(nodes)]):
        handed_on = tuple(live[end]) if end in live else output.args[0]
        made.append(_link(objects, inputs if begin == 0 else live[begin], nodes[begin:end], handed_on))
        names.append(_name(model, nodes[begin:end], names))
    return made, names


def _pull_items_up(graph: fx.Graph) -> None:
    """Take ``a, b = f(x)`` apart at once, so that no tuple has to be handed on."""
    for node in list(graph.nodes):
        if node.target is not operator.getitem or not isinstance(node.args[1], (int, str)):
            continue  # of a tensor, such an item is a view: taken earlier it is the same
        source = node.args[0]
        if isinstance(source, fx.Node) and source.op not in ("placeholder", "get_attr"):
            source.append(node)


def _cuts(nodes: Sequence[fx.Node], spans: Sequence[Span], heavy: Sequence[bool], near: int) -> list[int]:
    """Where to cut. ``spans`` are the first and the last place before which each value is alive."""
    width = _widths(spans, len(nodes))
    places = [place for place, is_one in enumerate(heavy) if is_one]
    cuts = []
    for before, behind in zip(places, places[1:]):
        between = [cut for cut in range(behind, before, -1) if not _splits_items(nodes, cut)]
        cuts.append(min(between, key=lambda cut: width[cut], default=behind))
    # What is handed on over many links, such as a mask, says nothing about where a block ends.
    width = _widths([(begin, end) for begin, end in spans if sum(heavy[begin:end]) <= 2 * near], len(nodes))
    borders = [0, *cuts, len(nodes)]

    def within_a_block(number: int) -> bool:
        narrower = [other for other in range(max(number - near, 0), min(number + near + 1, len(borders)))
                    if width[borders[other]] < width[borders[number]]]
        before, behind = [n for n in narrower if n < number], [n for n in narrower if n > number]
        return bool(before and behind) and behind[0] - before[-1] <= len(places) * LARGEST

    return [cut for number, cut in enumerate(cuts, 1) if not within_a_block(number)]


def _widths(spans: Sequence[Span], count: int) -> list[int]:
    """How many values are alive before each place, and at the end."""
    change = [0] * (count + 2)
    for begin, end in spans:
        if begin <= end:
            change[begin] += 1
            change[end + 1] -= 1
    return list(itertools.accumulate(change))[:count + 1]


def _splits_items(nodes: Sequence[fx.Node], cut: int) -> bool:
    return nodes[cut].target is operator.getitem and nodes[cut].args[0] in nodes[max(cut - 8, 0):cut]


def is_heavy(model: nn.Module, node: fx.Node) -> bool:
    """Whether an operation is worth a link of its own."""
    if node.op == "call_module":
        return any(p.dim() > 1 for p in model.get_submodule(str(node.target)).parameters())
    weights = (attribute(model, str(source.target)) for source in node.all_input_nodes if source.op == "get_attr")
    return node.target in PRODUCTS or any(isinstance(w, nn.Parameter) and w.dim() > 1 for w in weights)


def attribute(model: nn.Module, path: str) -> Any:
    """What ``model.path`` is; None where it is nothing of the model's."""
    value: Any = model
    for name in path.split("."):
        value = getattr(value, name, None)
    return value


class _Objects:
    """The modules and tensors that a graph speaks of, by their paths."""

    def __init__(self, model: nn.Module, constants: Mapping[str, torch.Tensor]):
        self._model, self._constants = model, constants

    def __getitem__(self, path: str) -> Any:
        return self._constants[path] if path in self._constants else attribute(self._model, path)


def _link(objects: _Objects, inputs: Sequence[fx.Node], nodes: Sequence[fx.Node], handed_on: Any) -> linking.Traced:
    """A module of ``nodes`` that takes the values of ``inputs`` and gives those of ``handed_on``."""
    graph, root = fx.Graph(), {}
    values: dict[fx.Node, fx.Node] = {}

    def own(path: str) -> str:
        """A flat name for ``path``, so that no module of the model is written to."""
        if path == "training":
            root[path] = True
            return path
        name, thing = "own_" + path.replace(".", "_"), objects[path]
        while name in root and root[name] is not thing:
            name += "_"
        root[name] = thing
        return name

    def value(node: fx.Node) -> fx.Node:
        if node not in values:  # an attribute: fetched where it is used, not handed on
            values[node] = graph.get_attr(own(str(node.target)))
        return values[node]

    for node in inputs:
        values[node] = graph.placeholder(str(node.target) if node.op == "placeholder" else node.name)
    for node in nodes:
        copy = graph.node_copy(node, value)
        copy.meta = {}
        if node.op == "call_module":
            copy.target = own(str(node.target))
        values[node] = copy
    graph.output(fx.map_arg(handed_on, value))
    return linking.Traced(root, graph, "Traced")


def _name(model: nn.Module, nodes: Sequence[fx.Node], taken: Sequence[str]) -> str:
    """The module or the weight of the first heavy operation, else the first module, else the first operation."""
    heavy = next((node for node in nodes if is_heavy(model, node)), None)
    first = heavy or next((node for node in nodes if node.op == "call_module"), nodes[0] if nodes else None)
    if first is None:
        return "identity"
    weights = [str(source.target) for source in first.all_input_nodes if source.op == "get_attr"]
    name = str(first.target) if first.op == "call_module" else first.name
    if first is heavy and first.op != "call_module" and weights:
        name = weights[0].rpartition(".")[0] or weights[0]
    number = sum(other.partition("#")[0] == name for other in taken)
    return f"{name}#{number + 1}" if number else name
