"""Tracing: from a model's ``forward`` to a graph of its operations, with torch.fx.

A sub-module that cannot be traced stays whole, as one node, and everything is traced again. What tracing would burn
into the graph without a word is looked for, and the sub-module in which it happens stays whole as well:

::

    branches on values, len(), range()          fx raises; assertions are recorded (proxies.py)
    a branch on self.training                   the graphs of training and evaluation differ; constants may
    self.x = ..., self.calls += 1               the module's attributes are others afterwards
    random.random(), np.random                  the generators have moved
    with torch.no_grad(), torch.autocast        the mode is another one than at the beginning of forward
    torch.rand(3), torch.zeros(n)               recorded like any other operation (recording.py)
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Callable, Iterator, Mapping, Sequence

import torch
from torch import fx, nn

from hvtrain.errors import Uncuttable
from hvtrain.hybrid.torch import known, links, merging, proxies
from hvtrain.hybrid.torch.attributes import Attributes
from hvtrain.hybrid.torch.guards import Untraceable, check_generators, generators, modes, reason, where
from hvtrain.hybrid.torch.recording import factories_recorded


@dataclass(frozen=True)
class Traced:
    """A graph, the tensors that fx made up on the way, and the modules that it left whole, with the reasons."""

    graph: fx.Graph
    constants: Mapping[str, torch.Tensor]
    whole: Mapping[str, str]


def trace(model: nn.Module, args: Sequence[Any] | None, named: Mapping[str, Any], method: str = "forward") -> Traced:
    """Trace ``method`` of ``model``, in training and in evaluation mode.

    ``args`` and ``named`` are an example of its arguments; None for ``args``: those without a default.

    Raises:
        Uncuttable: the method itself cannot be traced.
    """
    whole: dict[str, str] = {}
    while True:
        try:
            found = []
            for mode in (True, False):
                with in_mode(model, mode):
                    found.append(_Tracer(whole, args, named, method).run(model))
            graph = merging.merged(found[0], found[1])
            return Traced(graph, found[0].constants, whole)
        except Untraceable as failure:
            blame = failure
        except merging.Different as difference:
            path = next((p for p in reversed(difference.within) if p and p not in whole), "")
            blame = Untraceable(path, f"it does not do the same in training as in evaluation ({difference})")
        if not blame.path or blame.path in whole:
            raise _uncuttable(model, method, blame)
        whole[blame.path] = blame.reason + (f" ({blame.where})" if blame.where else "")


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Within this context ``model`` is in that mode; every module's own flag is put back."""
    was, flags = model.training, [(module, module.training) for module in model.modules()]
    try:
        model.train(training)
        yield
    finally:
        model.train(was)  # which may be the model's own, and do more than to set flags
        for module, flag in flags:
            module.training = flag


class _Tracer(fx.Tracer):
    """Traces one method once. ``graph`` and ``constants`` are the result."""

    proxy_buffer_attributes = True

    def __init__(self, whole: Mapping[str, str], args: Sequence[Any] | None, named: Mapping[str, Any], method: str):
        super().__init__()
        self.constants: dict[str, torch.Tensor] = {}
        self.traced_func_name = method
        self._whole, self._args, self._named = whole, args, named
        self._entered = [("", modes())]

    def run(self, model: nn.Module) -> "_Tracer":
        attributes, before = Attributes(model), generators()
        try:
            with factories_recorded(self):
                self.trace(model)
        except Untraceable:
            raise
        except Exception as error:  # whatever the user's code makes of a proxy
            raise Untraceable("", reason(error), where(error)) from error
        finally:
            self.constants, changed = attributes.put_back()
        check_generators("", before)
        if changed is not None:
            raise Untraceable(*changed)
        return self

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (module_qualified_name in self._whole or links.has_hooks(m) or isinstance(m, torch.jit.ScriptModule)
                or super().is_leaf_module(m, module_qualified_name))

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...],
                    kwargs: dict[str, Any]) -> Any:
        path = self.path_of_module(m)
        stack = None if path in self._whole or links.has_hooks(m) else known.stack(m, *args, **kwargs)
        if stack is not None:
            return stack(self)
        if self.is_leaf_module(m, path):
            return super().call_module(m, forward, args, kwargs)
        self._check_modes(type(m).__name__)
        before = generators()
        self._entered.append((path, modes()))
        try:
            value = super().call_module(m, forward, args, kwargs)
        except Untraceable:
            raise
        except Exception as error:
            raise Untraceable(path, reason(error), where(error)) from error
        finally:
            self._entered.pop()
        check_generators(path, before)
        return value

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        if kind not in ("placeholder", "output"):
            self._check_modes(repr(target) if isinstance(target, str) else getattr(target, "__name__", repr(target)))
        node = super().create_node(kind, target, *args, **kwargs)
        node.meta["within"] = tuple(entered for entered, _ in self._entered)
        return node

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return proxies.Proxy(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        asserted = proxies.asserted(sys._getframe(2))  # above this and Proxy.__bool__
        if not asserted:
            return super().to_bool(obj)
        self.create_proxy("call_function", proxies.hold, (obj, asserted), {})
        return True

    def _check_modes(self, what: str) -> None:
        path, before = self._entered[-1]
        if modes() != before:
            raise Untraceable(path, f"{what} runs within a context such as torch.no_grad() or torch.autocast(), in a "
                                    "checkpoint (for which there is hybrid.recompute) or in an autograd.Function, which "
                                    "tracing does not see")

    def create_args_for_root(self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None) -> Any:
        """Placeholders for the arguments of the example alone, so that the others keep their defaults."""
        return merging.rooted(self, root_fn, self._args, self._named)


def _uncuttable(model: nn.Module, method: str, blame: Untraceable) -> Uncuttable:
    where = f"\n  {blame.where}" if blame.where else ""
    return Uncuttable(
        f"{type(model).__name__} cannot be cut into stages, because its {method} cannot be traced: {blame.reason}{where}"
        "\nDo one of these: move that piece into a sub-module of its own, which then stays whole; give the model a "
        "method layers() that returns its modules in the order in which they are applied; write it as nn.Sequential; "
        "or take hybrid.stages=1")
