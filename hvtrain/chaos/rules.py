"""Combinations of a fault's keys that make no sense. Each rule is a generator over one fault."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Iterator, Sequence

from hvtrain.chaos.phases import IN_STEPS, SEATED, STATELESS

if TYPE_CHECKING:
    from hvtrain.chaos.plan import Fault


@dataclass(frozen=True)
class Conflict:
    """A broken rule: ``key`` is the one to change, ``others`` are those that it clashes with."""

    key: str
    message: str
    others: tuple[str, ...] = ()


class ImpossibleFault(ValueError):
    """Keys that are fine one by one contradict each other; ``conflicts`` holds every contradiction."""

    def __init__(self, found: Sequence[Conflict]):
        self.conflicts = tuple(found)
        super().__init__("; ".join(f"{conflict.key}: {conflict.message}" for conflict in found))


def conflicts(fault: Fault) -> list[Conflict]:
    """All rules that ``fault`` breaks."""
    rules = (_at_random,) if fault.every is not None else (_when, _where, _how)
    return [conflict for rule in rules for conflict in rule(fault)]


def _at_random(fault: Fault) -> Iterator[Conflict]:
    if fault.kind not in ("kill", "stop"):
        yield Conflict("kind", (
            f"every strikes from outside of the worker, which can only kill or stop it; give {fault.kind} a step"),
            ("every",))
    for key in ("step", "phase", "round", "count", "steps", "seconds"):
        if getattr(fault, key) is not None:
            yield Conflict(key, f"every strikes at random times, so it has no {key}; remove one of the two", ("every",))
    if fault.ranks is not None:
        yield Conflict("rank", "every strikes a random worker each time; remove rank", ("every",))


def _when(fault: Fault) -> Iterator[Conflict]:
    if fault.during is not None:
        yield Conflict("during", "only a fault with every goes on for a time; remove during, or add every: 2s, say",
                       ("every",))
    if fault.step is None and fault.round is None:
        if fault.phase is None:
            yield Conflict("step", (
                f"{fault.kind} must know when: give step: 40, say, or phase: joining (or another phase that is not "
                "passed in every step), or every: 2s for random times"), ("phase", "round", "every"))
        elif fault.at in IN_STEPS:
            yield Conflict("step", (
                f"every step passes {fault.phase}; say which one: step: 40, or round: 2 for the first of that round"),
                ("phase", "round", "every"))
    if fault.step is not None and fault.phase in STATELESS:
        yield Conflict("step", f"a worker in phase {fault.phase} knows of no step yet; use round: 2 or leave step out",
                       ("phase",))


def _where(fault: Fault) -> Iterator[Conflict]:
    allowed = _PHASES_OF.get(fault.kind)
    if allowed is not None and fault.at not in allowed[0]:
        yield Conflict("phase", f"{allowed[1]}; use one of {', '.join(allowed[0])}", ("kind",))
    if fault.phase == "checkpoint" and fault.ranks is not None and fault.ranks != [0]:
        yield Conflict("rank", "only rank 0 writes checkpoints; use rank: 0", ("phase",))


def _how(fault: Fault) -> Iterator[Conflict]:
    if fault.kind == "slow":
        if fault.seconds is None:
            yield Conflict("seconds", "slow must know how much longer each step takes: seconds: 0.2, say", ("kind",))
        if fault.steps is not None and fault.at not in IN_STEPS:
            yield Conflict("steps", f"phase {fault.at} is not passed in every step, so there are no steps to count",
                           ("phase",))
        return
    for key in ("seconds", "steps"):
        if getattr(fault, key) is not None:
            yield Conflict(key, f"only slow has {key}; {fault.kind} does not use it", ("kind",))


_PHASES_OF = {
    "leave": (SEATED, "only a worker that has its seat in a round can ask to leave it"),
    "cut": (("state", *SEATED), "there are connections to cut only within a round"),
    # After the first changed weight a reduction cannot fail any more: a step is a transaction.
    "fail": (("forming", "state", "backward", "bucket", "reduced", "evaluation"), (
        "a reduction fails where there is one")),
}
