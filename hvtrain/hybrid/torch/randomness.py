"""Random numbers of a stage's own: the same whatever the number of stages, their schedule and their timing.

PyTorch has one default generator for all threads of the processor. So the links that draw (dropout, say) run under a mode
that gives each operation which would use the default one a generator of the stage's instead, seeded anew for each
micro-batch and link::

    (run.seed, step, rank) --base--> (micro-batch, link) --seed--> link 3: bernoulli_(p)  ->  bernoulli_(p, generator)

A recomputed link draws the same numbers again.
"""

from __future__ import annotations

import functools
from contextlib import nullcontext
from typing import Any, Callable, Collection, ContextManager, Mapping, Sequence

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hvtrain.errors import UsageError, UserCodeError
from hvtrain.hybrid.torch.lanes import Lane

_MASK = 2**64 - 1
_NOTHING = nullcontext()


def mixed(base: int, *numbers: int) -> int:
    """A seed of 63 bits from ``base`` and ``numbers``; their order matters.

    Each is stirred in by the finalizer of SplitMix64 (Steele et al., 2014, "Fast splittable pseudorandom number
    generators"), so that all bits, and the lower 32 that a Mersenne twister takes, depend on all of them.
    """
    state = base & _MASK
    for number in numbers:
        state = (state + 0x9E3779B97F4A7C15 * (number + 1)) & _MASK
        state = ((state ^ state >> 30) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ state >> 27) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1


def draws(operation: Any, named: Mapping[str, Any]) -> bool:
    """Whether an operation may use the default generator."""
    return torch.Tag.nondeterministic_seeded in operation.tags and named.get("generator") is None


@functools.lru_cache(maxsize=None)
def seedable(operation: Any) -> Any:
    """The operation, or that overload of it which takes the same arguments and a generator; None if there is none."""
    names = [argument.name for argument in operation._schema.arguments]
    if "generator" in names:
        return operation
    packet = operation.overloadpacket
    for name in packet.overloads():
        found = getattr(packet, name)
        theirs = [argument.name for argument in found._schema.arguments]
        if "generator" in theirs and [each for each in theirs if each != "generator"] == names:
            return found
    return None


class Dice(TorchDispatchMode):
    """Operations under it draw from its generators. One for each stage, used by that stage's thread alone."""

    def __init__(self) -> None:
        super().__init__()
        self._seed = 0
        self._generators: dict[torch.device, torch.Generator] = {}
        self._fresh: set[torch.device] = set()

    def seeded(self, seed: int) -> Dice:
        """Begin again from ``seed``; to be entered."""
        self._seed = seed
        self._fresh.clear()
        return self

    def __torch_dispatch__(self, operation: Any, types: Any, given: tuple[Any, ...] = (),
                           named: dict[str, Any] | None = None) -> Any:
        named = named or {}
        if draws(operation, named):
            other = seedable(operation)
            if other is not None:
                return other(*given, **named, generator=self._generator(_device(given, named)))
        return operation(*given, **named)

    def _generator(self, device: torch.device) -> torch.Generator:
        generator = self._generators.get(device)
        if generator is None:
            generator = self._generators[device] = torch.Generator(device)
        if device not in self._fresh:
            generator.manual_seed(self._seed)
            self._fresh.add(device)
        return generator


def _device(given: tuple[Any, ...], named: Mapping[str, Any]) -> torch.device:
    tensor = next((each for each in given if isinstance(each, torch.Tensor)), None)
    if tensor is not None:
        return tensor.device
    return torch.device(named.get("device") or "cpu")


class Watch(TorchDispatchMode):
    """Finds the links that draw. ``forbidden`` says what none may do under it; None: it may."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[int] = set()
        self.forbidden: str | None = None
        self._link = 0

    def around(self, link: int) -> ContextManager[Any]:
        """Within this context it is the link of this number."""
        self._link = link
        return self

    def __torch_dispatch__(self, operation: Any, types: Any, given: tuple[Any, ...] = (),
                           named: dict[str, Any] | None = None) -> Any:
        named = named or {}
        if not draws(operation, named):
            return operation(*given, **named)
        before = torch.default_generator.get_state()
        result = operation(*given, **named)
        drawn = not torch.equal(before, torch.default_generator.get_state()) or _device(given, named).type != "cpu"
        if drawn and self.forbidden:
            raise UserCodeError(f"{operation} draws random numbers {self.forbidden}")
        if drawn and seedable(operation) is None and _device(given, named).type == "cpu":
            raise UserCodeError(f"{operation} draws random numbers from torch's default generator, which all stages share, "
                                "and takes no other. Draw in another way (torch.rand, nn.Dropout), or run without hybrid")
        if drawn:
            self.found.add(self._link)
        return result


class Randomness:
    """Which ``links`` draw, and with which seeds one stage's do."""

    def __init__(self, lane: Lane) -> None:
        self.links: Collection[int] = ()
        self._lane, self._dice = lane, Dice()

    def around(self, base: int, microbatch: int) -> Callable[[int], ContextManager[Any]]:
        """For each link its context in the pass of ``microbatch`` of the step with seed ``base``."""
        def context(link: int) -> ContextManager[Any]:
            if link not in self.links:
                return _NOTHING
            seed = mixed(base, microbatch, link)
            self._lane.noise(seed)
            return self._dice.seeded(seed)

        return context


def check_generators(devices: Sequence[torch.device]) -> None:
    """Raise UsageError if two of the stages that draw, on these ``devices``, are on one GPU.

    Some of its operations (dropout among them) draw from its default generator, which one stage would seed while the
    other draws.
    """
    gpus = [device for device in devices if device.type == "cuda"]
    twice = next((gpu for gpu in gpus if gpus.count(gpu) > 1), None)
    if twice is not None:
        raise UsageError(f"hybrid.devices puts several stages onto {twice} that draw random numbers (dropout, say), and "
                         "a GPU has one generator for all of them. Give each of these stages a GPU of its own, or cut so that "
                         "one stage draws, by hybrid.split")


def check_untouched(before: torch.Tensor) -> None:
    """Raise UserCodeError if torch's default generator has moved since its state was ``before``."""
    if not torch.equal(before, torch.default_generator.get_state()):
        raise UserCodeError(
            "random numbers were drawn from torch's default generator while the stages computed, by something that did not "
            "draw when the model was tried out: a layer that draws in some steps only (have it always draw), or a data set "
            "that augments with torch's random numbers (let it have sample(index, rng) instead). All stages share that "
            "generator, so the step could not be done again alike")
