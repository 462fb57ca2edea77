"""Holds a chain against the model that it was cut from."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Callable, Container, Iterator, Mapping, Sequence

import torch
from torch import nn
from torch.utils import _pytree as pytree

from hvtrain.errors import UserCodeError
from hvtrain.hybrid.torch.attributes import Attributes
from hvtrain.hybrid.torch.links import follow, spread
from hvtrain.hybrid.torch.tracing import in_mode

FEW = 2
"""Samples of the example that are tried; two, because normalisation needs more than one."""


def arguments(sample_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What ``Task.inputs`` gives, as positional and keyword arguments of the model."""
    if isinstance(sample_inputs, dict):
        return (), dict(sample_inputs)
    return (tuple(sample_inputs), {}) if isinstance(sample_inputs, (tuple, list)) else ((sample_inputs,), {})


@contextmanager
def unchanged(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Puts attributes, buffers and random numbers back; the first two also whenever what it yields is called."""
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    attributes, buffers = Attributes(model), [(buffer, buffer.clone()) for buffer in model.buffers()]

    def put_back() -> None:
        attributes.put_back()
        with torch.no_grad():
            for buffer, kept in buffers:
                buffer.copy_(kept)

    with torch.random.fork_rng(devices=devices):
        try:
            yield put_back
        finally:
            put_back()


def few(args: Sequence[Any], named: Mapping[str, Any]) -> Any:
    """(args, named) with the first samples alone, where the first axis is that of the samples."""
    leaves = [leaf for leaf in pytree.tree_leaves((args, named)) if isinstance(leaf, torch.Tensor) and leaf.dim()]
    samples = len(leaves[0]) if leaves else 0

    def first(leaf: Any) -> Any:
        return leaf[:FEW] if isinstance(leaf, torch.Tensor) and leaf.dim() and len(leaf) == samples else leaf

    return pytree.tree_map(first, (tuple(args), dict(named)))


def runs(model: nn.Module, example: Any) -> bool:
    """Whether the model takes ``example``."""
    with unchanged(model), in_mode(model, False), torch.no_grad():
        try:
            model(*copies(example)[0], **copies(example)[1])
        except Exception:  # whatever the user's code raises
            return False
    return True


def copies(example: Any) -> Any:
    """``example`` with tensors of its own, since a model may work in place on them."""
    return pytree.tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf, example)


def check(model: nn.Module, links: Sequence[nn.Module], source: str, packed: Container[int], example: Any) -> set[int]:
    """Compare outputs, gradients and buffers, in training and evaluation, from the same random numbers.

    Returns:
        The numbers of the links that change their inputs.

    Raises:
        UserCodeError: the chain is another function than the model.
    """
    inplace: set[int] = set()

    def chained(*args: Any, **named: Any) -> Any:
        inputs = args
        for number, link in enumerate(links):
            versions = [v._version for v in inputs if isinstance(v, torch.Tensor) and not v.is_inference()]
            value = link(*inputs, **named)
            if versions != [v._version for v in inputs if isinstance(v, torch.Tensor) and not v.is_inference()]:
                inplace.add(number)
            inputs, named = (value,) if number + 1 in packed else spread(value), {}
        return value

    with unchanged(model) as put_back:
        for training in (False, True):
            with in_mode(model, training):
                for link in links:
                    follow(link, model)
                expected = _results(model, model, example, training)
                put_back()
                came = _results(chained, model, example, training)
                put_back()
                _compare(model, source, training, expected, came)
    held = {id(p) for link in links for p in link.parameters()}
    for name, parameter in model.named_parameters():
        if id(parameter) not in held and expected.get(f"the gradient of {name!r}") is not None:
            raise UserCodeError(f"{type(model).__name__} computes with the parameter {name!r}, but no layer that "
                                f"{_MEANS[source]} gives holds it. Give modules and methods of the model, not functions "
                                "that reach for them")
    return inplace


def _results(function: Callable[..., Any], model: nn.Module, example: Any, training: bool) -> dict[str, Any]:
    args, named = copies(example)
    torch.manual_seed(0)
    with torch.set_grad_enabled(training):
        outputs = function(*args, **named)
    results = {"outputs": outputs, "random numbers": torch.get_rng_state(),
               **{f"the buffer {name!r}": buffer.clone() for name, buffer in model.named_buffers()}}
    if training:
        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        leaves = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor) and leaf.requires_grad]
        if leaves and trainable:
            weights = [torch.linspace(-1, 2, leaf.numel(), device=leaf.device).view(leaf.shape) for leaf in leaves]
            found = gradients(leaves, list(trainable.values()), [
                weight.to(leaf.dtype) for weight, leaf in zip(weights, leaves)])
            results |= {f"the gradient of {name!r}": g for name, g in zip(trainable, found)}
    return results


def gradients(outputs: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor],
              given: Sequence[torch.Tensor]) -> Sequence[torch.Tensor | None]:
    """Gradients of ``wanted`` from those ``given`` of ``outputs``; None for what was not computed with.

    No ``grad`` is touched. Raises UserCodeError for a model with reentrant checkpoints.
    """
    try:
        return torch.autograd.grad(outputs, wanted, given, allow_unused=True)
    except RuntimeError as error:
        if "use_reentrant=True" not in str(error):
            raise
        raise UserCodeError("torch.utils.checkpoint(..., use_reentrant=True) does not work with hybrid. Leave the "
                            "checkpoint out and set hybrid.recompute=true, or give use_reentrant=False") from None


def _compare(model: nn.Module, source: str, training: bool, expected: Mapping[str, Any],
             came: Mapping[str, Any]) -> None:
    for what in expected:
        ours, form = pytree.tree_flatten(came.get(what))
        theirs, their_form = pytree.tree_flatten(expected[what])
        if form != their_form or not all(map(_equal, ours, theirs)):
            mode = "training" if training else "evaluation"
            raise UserCodeError(f"{type(model).__name__}, taken apart by {_MEANS[source]}, is another function than the "
                                f"whole: {what} differ in {mode} mode. {_REMEDY[source]}")


def _equal(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor):
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            return False
        if not ours.is_floating_point():
            return bool(torch.equal(ours, theirs))
        largest = float(theirs.detach().abs().max()) if theirs.numel() else 0.0
        return bool(torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5 * max(1.0, largest), equal_nan=True))
    return type(ours) is type(theirs) and (isinstance(ours, torch.Tensor) or ours is theirs or bool(ours == theirs))


_MEANS = {"traced": "tracing", "layers()": "its layers()", "Sequential": "its layers"}
_REMEDY = {
    "layers()": "layers() must return what forward applies, one after another, in the same order",
    "traced": "Its forward does something that tracing does not see. Give the model a method layers() that returns its "
              "modules in the order in which they are applied, or write it as nn.Sequential",
    "Sequential": "Write what happens beside the layers as a layer of its own",
}
