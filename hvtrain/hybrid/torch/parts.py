"""The parts of a model: consecutive links on one device, and the ties between parts that use the same weights.

::

    links    embed | block  block | block  norm  head        head computes with embed's weight
    parts      0   |       1      |         2
                w ------------ Tie -----------> alias of w   a leaf with the same values; its gradient is added to w's
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from hvtrain.errors import Uncuttable, UsageError
from hvtrain.hybrid import splits
from hvtrain.hybrid.torch import links as linking
from hvtrain.hybrid.torch.chain import Chain
from hvtrain.hybrid.torch.links import Around


@dataclass(frozen=True, eq=False)  # tensors have no truth to compare by
class Tie:
    """A parameter that several parts use: ``owner`` is the model's own, ``alias`` the leaf that a later part uses.

    ``part`` is the number of the part with the alias. Where the owner is trained, the alias gets a gradient of its own,
    which has to be added to the owner's.
    """

    owner: nn.Parameter
    alias: nn.Parameter
    part: int

    @torch.no_grad()
    def sync(self) -> None:
        """Give the alias the owner's value: the same memory where the device is the same, a copy elsewhere.

        To be called before every step and evaluation, since the owner may have been changed or its memory exchanged.
        """
        if self.owner.device == self.alias.device:
            self.alias.data = self.owner.data
        else:
            self.alias.copy_(self.owner)


class Part(nn.Module):
    """Consecutive links of a chain on one device.

    ``links[0]`` has the number ``first`` in the chain; ``number`` is the part's own. ``ties`` are those whose alias
    lies in this part; ``parameters()`` gives the aliases in place of their owners.
    """

    def __init__(self, chain: Chain, number: int, first: int, links: Sequence[nn.Module], device: torch.device,
                 ties: Sequence[Tie] = (), copies: Sequence[tuple[nn.Module, nn.Module]] = ()):
        super().__init__()
        self.links = nn.ModuleList(links)
        self.number, self.first, self.device, self.ties = number, first, device, list(ties)
        self._chain, self._copies = chain, list(copies)
        numbers = range(first, first + (1 if chain.source == "Sequential" else len(links)))
        self._inplace = any(number in chain.inplace for number in numbers)
        self._follow()

    def forward(self, *inputs: Any, around: Around | None = None, **named: Any) -> Any:
        """What its last link gives. ``around(number)`` makes the context for link ``number`` of the chain.

        The inputs are not changed, even if a link works in place.
        """
        if self.number:  # what an earlier part computed as a device is its own
            inputs = tuple(self.device if isinstance(value, torch.device) else value for value in inputs)
        if self._inplace:
            inputs, named = linking.clones((inputs, named))
        packed = self._chain.packed
        if self.first in packed and len(inputs) > 1:  # spread on its way here
            inputs = (inputs,)
        return linking.run(list(self.links), self.first, inputs, named, around, packed)

    def train(self, mode: bool = True) -> "Part":
        """Put the whole model into that mode, and this part's copies with it."""
        self._chain.train(mode)
        self._follow()
        return self

    def _follow(self) -> None:
        self.training = self._chain.model.training
        self.links.training = self.training
        for copied, original in self._copies:
            copied.training = original.training
        for link in self.links:
            linking.follow(link, self._chain.model)


def cut(chain: Chain, split: Sequence[int], devices: Sequence[torch.device | str],
        changing: Sequence[torch.Tensor] = ()) -> list[Part]:
    """Cut ``chain`` into parts of ``split`` links and move each to its device.

    ``changing`` are the model's buffers that forward passes change; those of normalisation layers need not be among them.

    Of a parameter that several parts use the first is the owner, and the others get an alias in a copy of the modules
    around it; so every parameter of the model stays the object that it is. Buffers that move to another device do not:
    whoever keeps references to buffers must take them afterwards.

    Raises:
        UsageError: ``split`` does not fit the chain or the devices.
        Uncuttable: parts share what cannot be shared.
    """
    _check(chain, split, devices)
    parts: list[Part] = []
    owners: dict[int, torch.Tensor] = {}  # parameters and buffers that earlier parts hold
    theirs = set(map(id, changing))
    changed = {(module, name) for link in chain.links for module in link.modules()
               for name, buffer in module._buffers.items() if isinstance(module, _NormBase) or id(buffer) in theirs}
    for number, (length, device) in enumerate(zip(split, map(_numbered, devices))):
        first = sum(split[:number])
        links = chain.links[first:first + length]
        own = {id(tensor): tensor for link in links for tensor in (*link.parameters(), *link.buffers())}
        shared = {key: tensor for key, tensor in own.items() if key in owners}
        _refuse_statistics(chain, links, shared, first, changed)
        links, ties, copies = _separated(chain, links, shared, device, number)
        parts.append(Part(chain, number, first, links, device, ties, copies))
        owners |= own | _move(chain, parts[-1])
    return parts


def _separated(chain: Chain, links: Sequence[nn.Module], shared: dict[int, torch.Tensor], device: torch.device,
               number: int) -> tuple[Sequence[nn.Module], list[Tie], list[tuple[nn.Module, nn.Module]]]:
    """``links`` with copies of those modules that hold tensors of earlier parts; the ties; (copy, original) of each."""
    ties: list[Tie] = []
    modules = (chain.model, *links)
    memo: dict[int, Any] = {id(t): t for root in modules for t in (*root.parameters(), *root.buffers())}
    replaced = set()
    for key, tensor in shared.items():
        trained = isinstance(tensor, nn.Parameter) and tensor.requires_grad
        if tensor.device == device and not trained:
            continue
        value = tensor.detach() if tensor.device == device else tensor.detach().to(device, copy=True)
        memo[key] = value
        if isinstance(tensor, nn.Parameter):
            memo[key] = nn.Parameter(value, requires_grad=tensor.requires_grad)
            ties.append(Tie(tensor, memo[key], number))
        replaced.add(key)
    originals = {id(m): m for root in modules for m in root.modules()}
    memo |= {key: m for key, m in originals.items() if replaced.isdisjoint(map(id, (*m.parameters(), *m.buffers())))}
    try:
        made = [copy.deepcopy(link, memo) for link in links] if replaced else links
    except (RuntimeError, TypeError) as error:  # a tensor that was computed, a lock, a generator
        raise Uncuttable(f"stage {number} uses weights of an earlier stage, so that its modules have to be copied, "
                         f"which failed: {error}. Cut so that one stage has both, by hybrid.split") from error
    copies = [(memo[key], m) for key, m in originals.items() if memo.get(key, m) is not m]
    return made, ties, copies


def _move(chain: Chain, part: Part) -> dict[int, torch.Tensor]:
    """Move a part to its device, and the model's own references with it; gives the new buffers."""
    before = [(module, name, buffer) for module in part.modules() for name, buffer in module._buffers.items()
              if buffer is not None]
    part.to(part.device)
    moved = {id(old): module._buffers[name] for module, name, old in before if module._buffers[name] is not old}
    if moved:
        for module in (m for root in (chain.model, *chain.links) for m in root.modules()):
            for name, buffer in module._buffers.items():
                if id(buffer) in moved:
                    module._buffers[name] = moved[id(buffer)]
    return {id(buffer): buffer for buffer in moved.values() if buffer is not None}


def _refuse_statistics(chain: Chain, links: Sequence[nn.Module], shared: dict[int, torch.Tensor], first: int,
                       changed: set[tuple[nn.Module, str]]) -> None:
    for number, link in enumerate(links, first):
        for module in link.modules():
            own = [name for name, buffer in module._buffers.items()
                   if id(buffer) in shared and (module, name) in changed]
            if own:
                path = next((path for path, m in chain.model.named_modules() if m is module), type(module).__name__)
                what = (f"the normalisation layer {path!r}" if isinstance(module, _NormBase)
                        else f"the averaged buffer {f'{path}.{own[0]}'.lstrip('.')!r}")
                raise Uncuttable(
                    f"{what} is used by layer {number} ({chain.names[number]}) and by an earlier stage, so that its values "
                    "would depend on which is faster. Give each its own, or cut so that one stage has both, by "
                    "hybrid.split")


def _numbered(device: torch.device | str) -> torch.device:
    """The device with its index, so that equal ones compare equal."""
    device = torch.device(device)
    nameless = device.type == "cuda" and device.index is None
    return torch.device("cuda", torch.cuda.current_device()) if nameless else device


def _check(chain: Chain, split: Sequence[int], devices: Sequence[Any]) -> None:
    if len(split) != len(devices):
        raise UsageError(f"hybrid.split makes {len(split)} stages, but there are {len(devices)} devices")
    kept = "".join(f"\n  {path} was kept whole: {reason}" for path, reason in chain.kept_whole.items())
    splits.check(split, chain.names, kept)
