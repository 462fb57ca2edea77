"""What a fault plan says: a seed and a list of faults.

A fault strikes in one of three ways::

    {kind: kill, step: 40, phase: backward, rank: 2}    in that phase of that step
    {kind: kill, phase: joining, round: 2}              the first time that a worker passes the phase
    {kind: kill, every: 2s, during: 3m}                 at random times, a random worker
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal, Union

from pydantic import Field, WrapValidator, model_validator
from pydantic_core import PydanticCustomError

from hvtrain.chaos.phases import IN_STEPS
from hvtrain.chaos.rules import ImpossibleFault, conflicts
from hvtrain.config.base import PositiveDuration, PositiveInt, Section
from hvtrain.probe import PHASES

ANY = "any"


def _rank(value: Any, handler: Any) -> Any:
    ranks = value if isinstance(value, list) else [value]
    fine = ranks and all(type(rank) is int and rank >= 0 for rank in ranks) and len(set(ranks)) == len(ranks)
    if value == ANY or fine:
        return value
    text = f"expected a rank such as 2, a list of different ranks such as [1, 2], or any; got {value!r}"
    raise PydanticCustomError("unit", "{text}", {"text": text})


Rank = Annotated[Union[int, list[int], Literal["any"]], WrapValidator(_rank)]
Phase = Literal[PHASES]  # type: ignore[valid-type]


class Fault(Section):
    """One thing that goes wrong."""

    kind: Literal["kill", "stop", "raise", "slow", "hang", "leave", "cut", "fail"] = Field(description=(
        "kill: SIGKILL; stop: SIGSTOP; raise: an exception in user code; slow: every step takes longer; hang: stuck in "
        "user code; leave: asks to leave; cut: its connections to the other workers are shut; fail: a reduction "
        "fails."))
    step: PositiveInt | None = Field(None, description=(
        "The step in which it strikes, counted from 1; in phases that not every step passes, the earliest one."))
    phase: Phase | None = Field(None, description=(
        "Where in the worker's course it strikes. Left out: forward, for fail bucket."))
    rank: Rank = Field(ANY, description=(
        "Whom it strikes; a list strikes all of them at once; any is one of them, chosen by the seed."))
    round: PositiveInt | None = Field(None, description="It strikes in this round at the earliest.")
    count: PositiveInt | None = Field(None, description="How many times it strikes each rank. Left out: once.")
    seconds: PositiveDuration | None = Field(None, description="For slow: how much longer each step takes.")
    steps: PositiveInt | None = Field(None, description="For slow: for how many steps. Left out: 1.")
    every: PositiveDuration | None = Field(None, description=(
        "Strikes random workers at random times with this mean distance (the gaps are exponential)."))
    during: PositiveDuration | None = Field(None, description=(
        "For every: for how long, from the first round on. Left out: to the end of the job."))

    @model_validator(mode="after")
    def _possible(self) -> Fault:
        found = conflicts(self)
        if found:
            raise ImpossibleFault(found)
        return self

    @property
    def at(self) -> str:
        """The phase it strikes in."""
        return self.phase or ("bucket" if self.kind == "fail" else "forward")

    @property
    def ranks(self) -> list[int] | None:
        """The ranks it names; None for any."""
        return None if self.rank == ANY else self.rank if isinstance(self.rank, list) else [self.rank]

    @property
    def times(self) -> int:
        """How many times it strikes each of its ranks."""
        return self.count or 1

    @property
    def planned(self) -> int | None:
        """How many strikes it makes in all; None where chance decides."""
        return None if self.every is not None else self.times * len(self.ranks or [ANY])

    @property
    def fingerprint(self) -> str:
        """Equal for equal faults: a claim of it cannot be taken for one of another plan in the same directory."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def __str__(self) -> str:
        if self.every is not None:
            during = f", for {self.during}" if self.during is not None else ", to the end"
            return f"{self.kind} a random worker every {self.every} on average{during}"
        ranks = self.ranks
        whom = "any rank" if ranks is None else f"rank {ranks[0]}"
        if ranks is not None and len(ranks) > 1:
            whom = f"ranks {', '.join(map(str, ranks[:-1]))} and {ranks[-1]}"
        words = [self.kind, whom, *([f"by {self.seconds}"] if self.seconds is not None else []), "in", self.at]
        if self.at in IN_STEPS and self.step is not None:
            last = self.step + (self.steps or 1) - 1
            words.append(f"of step {self.step}" if last == self.step else f"of steps {self.step} to {last}")
        elif self.step is not None:
            words.append(f"from step {self.step} on")
        words += [f"from round {self.round} on"] if self.round is not None else []
        words += [f"{self.times} times"] if self.times > 1 else []
        return " ".join(words)


class Plan(Section):
    """Faults that are to strike a run."""

    name: str = Field("", description="A name for messages. Left out: the file's name.")
    seed: int = Field(0, ge=0, description="Seed of everything that the plan leaves to chance.")
    faults: list[Fault] = Field(min_length=1, description="What goes wrong; see `hvtrain chaos example`.")

    def title(self, index: int) -> str:
        """What the fault ``index`` is called in messages."""
        return f"{self.faults[index]} (faults.{index} of {self.name or 'the plan'})"
