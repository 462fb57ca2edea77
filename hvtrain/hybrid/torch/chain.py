"""A model as a chain of links, whatever it was written as."""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass, field
from typing import Any, Mapping

import torch
from torch import nn

from hvtrain.adapters.torch.batches import to_device
from hvtrain.errors import Uncuttable, UserCodeError
from hvtrain.hybrid.torch import checking, grouping, tracing
from hvtrain.hybrid.torch import links as linking
from hvtrain.hybrid.torch.links import Around


@dataclass(frozen=True)
class Chain:
    """``model`` as ``links``: link 0 takes the model's own arguments, each other one what the one before it gives.

    A tuple is spread over the next link's arguments, save for links whose number is in ``packed``: they take it as one
    argument, as layers of a Sequential do. The last link gives the model's output. The links hold the model's own
    modules and parameters, so training them trains the model; parameters that forward never uses are in none of them.

    ``names`` are for people. ``source`` says how the model was cut: "Sequential", "layers()", "traced", "whole".
    ``inplace`` are the numbers of links that may change their inputs, ``kept_whole`` the modules that tracing could not
    take apart, with the reasons.
    """

    model: nn.Module
    links: list[nn.Module]
    names: list[str]
    source: str
    packed: frozenset[int] = frozenset()
    inplace: frozenset[int] = frozenset()
    kept_whole: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, *inputs: Any, around: Around | None = None, **named: Any) -> Any:
        """The model's output, link by link."""
        return linking.run(self.links, 0, inputs, named, around, self.packed)

    def train(self, mode: bool = True) -> None:
        """Put the model into that mode, and with it the links that belong to no module of the model."""
        self.model.train(mode)
        for link in self.links:
            linking.follow(link, self.model)


def whole(model: nn.Module) -> Chain:
    """The model as its only link: for one stage no model has to be cut."""
    return Chain(model, [model], [type(model).__name__], "whole")


def chain(model: nn.Module, sample_inputs: Any = None, *, check: bool = True) -> Chain:
    """Cut ``model`` as finely as it can be: a plain ``nn.Sequential``, what its ``layers()`` gives, or else by tracing.

    Args:
        sample_inputs: what ``Task.inputs`` gives: a dict for the model's keywords, a tuple or list for its arguments,
            else its only argument. Without them tracing takes the arguments that have no default for those that are
            given; see :mod:`hvtrain.hybrid.torch.example`.
        check: hold the chain against the model, with two of the samples.

    Raises:
        Uncuttable: the model cannot be cut; it says where, why and what to do.
        UserCodeError: what it says about its layers is wrong.
    """
    _refuse_compiled(model)
    example = None
    if sample_inputs is not None:
        example = checking.arguments(sample_inputs)
        example = _example(model, *example) if check else example
    kept_whole: Mapping[str, str] = {}
    packed: frozenset[int] = frozenset()
    if linking.is_sequential(model):
        source, (found, names) = "Sequential", _sequential(model)
        packed = frozenset(range(1, len(found)))
    elif linking.has_layers(model):
        _refuse_hooks(model)
        source, (found, names, packed) = "layers()", _layers(model)
    else:
        _refuse_hooks(model)
        source, traced = "traced", tracing.trace(model, *(example or (None, {})))
        kept_whole = traced.whole
        found, names = grouping.links(model, traced)
    inplace = {number for number, link in enumerate(found) if linking.works_in_place(link)}
    if example is not None and check:
        inplace |= checking.check(model, found, source, packed, example)
    result = Chain(model, found, names, source, packed, frozenset(inplace), kept_whole)
    for link in found:
        linking.follow(link, model)
    return result


def _example(model: nn.Module, args: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
    """Few samples, on the model's device; all of them for a model that needs them all."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    args, named = to_device((args, dict(named)), device)
    for example in (checking.few(args, named), (args, named)):
        if checking.runs(model, example):
            return example
    with checking.unchanged(model):
        model(*example[0], **example[1])  # once more, for the user's own traceback
    raise AssertionError("unreachable: a model that fails must fail again")


def _sequential(model: nn.Sequential) -> tuple[list[nn.Module], list[str]]:
    pairs = list(linking.flattened(model))
    if not pairs:
        raise Uncuttable("the model is an empty nn.Sequential: there is nothing to cut into stages")
    return [link for _, link in pairs], [name for name, _ in pairs]


def _layers(model: nn.Module) -> tuple[list[nn.Module], list[str], frozenset[int]]:
    paths = {module: path for path, module in model.named_modules()}
    found: list[nn.Module] = []
    names: list[str] = []
    packed: set[int] = set()
    for number, layer in enumerate(model.layers()):  # type: ignore[operator]
        if isinstance(layer, nn.Module) and linking.is_sequential(layer):
            inner = list(linking.flattened(layer, f"{paths.get(layer, number)}."))
            packed |= set(range(len(found) + 1, len(found) + len(inner)))
            found += [link for _, link in inner]
            names += [name for name, _ in inner]
            continue
        found.append(layer if isinstance(layer, nn.Module) else _call(model, layer, number))
        names.append(paths.get(layer, "") or getattr(layer, "__name__", type(layer).__name__))
    if not found:
        raise UserCodeError(f"{type(model).__name__}.layers() gave nothing; it must give the modules that forward "
                            "applies")
    return found, names, frozenset(packed)


def _call(model: nn.Module, layer: Any, number: int) -> nn.Module:
    """A callable as a link: a method of the model is traced, so that it is known what it uses."""
    if not callable(layer):
        raise UserCodeError(f"{type(model).__name__}.layers() gave a {type(layer).__name__} as layer {number}; it must "
                            "give modules, methods of the model or functions")
    if inspect.ismethod(layer) and layer.__self__ is model:
        traced = tracing.trace(model, None, {}, layer.__func__.__name__)
        (made, *_), _ = grouping.links(model, traced, near=None)
        return made
    inner = layer
    while isinstance(inner, functools.partial):
        inner = inner.func
    held = [cell.cell_contents for cell in getattr(inner, "__closure__", None) or ()]
    if any(isinstance(value, (nn.Module, torch.Tensor)) for value in (*held, getattr(inner, "__self__", None))):
        raise UserCodeError(f"layer {number} of {type(model).__name__}.layers() is a function that holds a module or a "
                            "tensor, so that nobody can tell which weights it uses. Make it a method or a sub-module of "
                            "the model")
    return linking.Call(layer)


def _refuse_compiled(model: nn.Module) -> None:
    if isinstance(model, torch.jit.ScriptModule):
        raise Uncuttable("the model is TorchScript (torch.jit), whose forward is no Python that could be cut into "
                         "stages. Have Task.model give the module that it was made of, or take hybrid.stages=1")
    inner = getattr(model, "_orig_mod", None)  # of torch.compile (2.13)
    if isinstance(inner, nn.Module):
        raise Uncuttable(f"the model is a {type(inner).__name__} within torch.compile, which compiles it as a whole, so "
                         "that it cannot be cut into stages. Have Task.model give the module itself, with its layers "
                         "compiled each (layer.compile()), or take hybrid.stages=1")


def _refuse_hooks(model: nn.Module) -> None:
    if linking.has_hooks(model):
        raise Uncuttable(f"hooks are registered on {type(model).__name__} itself, which nobody calls as a whole once "
                         "it is cut into stages. Register them on its sub-modules, or take hybrid.stages=1")
