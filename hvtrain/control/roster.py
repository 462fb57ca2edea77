"""The state of the membership machine: the job's phase, its round, its people, and the limits of its waits."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Iterator, Mapping

from hvtrain.control.causes import Cause
from hvtrain.control.crew import Agent, Crew, Fleet, Stage, Worker, replace

__all__ = ["Agent", "Crew", "Fleet", "Limits", "Phase", "Round", "Stage", "State", "Status", "Worker", "replace"]


class Phase(Enum):
    GATHERING = "gathering"  # waiting for agents with enough slots
    OPEN = "open"  # workers start, train, are lost and replaced
    ENDING = "ending"  # a cause is known; workers finish what they must
    OVER = "over"


class Status(Enum):
    """Where a round stands."""

    NONE = "none"  # there has not been one
    FORMING = "forming"  # its members connect and agree on a state
    ACTIVE = "active"  # its members train
    PAUSING = "pausing"  # its members were asked to stop at the next step boundary, to form another one
    BROKEN = "broken"  # a member is gone, or a collective operation failed


@dataclass(frozen=True)
class Limits:
    """The waits and bounds of this machine, seconds where they are times; each is a key of the job file."""

    start: float  # launch.start_timeout
    stop: float  # launch.stop_timeout
    heartbeat: float  # elastic.heartbeat_timeout
    replace: float | None = 2.0  # elastic.replace_timeout, None for auto
    form: float = 30.0  # comm.timeout
    step: float | None = None  # elastic.step_timeout, None for auto
    elastic: bool = True  # elastic.enabled
    min_workers: int = 1
    max_workers: int | None = None
    spares: int = 0
    failures_per_step: int = 3  # elastic.max_failures_per_step
    losses_per_hour: int | None = None  # elastic.max_losses_per_hour
    tail: bool = False  # workers go on after the training, with the rest of their script (task.script)


STEP_FLOOR, STEP_FACTOR = 20.0, 10.0
"""elastic.step_timeout: auto is the larger of this many seconds and so many times the slowest step so far."""

REPLACE_FLOOR, REPLACE_FACTOR, REPLACE_CEILING = 2.0, 1.5, 30.0
"""elastic.replace_timeout: auto is so many times as long as workers take to start, from so many seconds to so many; where
they take longer than the ceiling, a wait would be in vain: the floor."""

PACE_HALVES = 600.0
"""What is known of the slowest step halves in so many seconds: one hiccup does not blunt the watch for good."""

FORM_ATTEMPTS = 3
"""A round that cannot be formed so many times in a row, though nobody was lost, ends the job; or if there are newcomers
in it, the job goes on without them (:mod:`hvtrain.control.newcomers`)."""

HOUR = 3600.0

OUTSIDE_LOSSES = 3
"""So many losses from outside count as one failure of the step: they seldom are the step's fault, but may be."""

FIRST_REST = 1.0
"""An agent that has lost two workers in a row before they were ready rests so many seconds; then twice as long ..."""


@dataclass(frozen=True)
class Round:
    """``since`` is when it was begun to be formed, became active, or broke.

    ``left``: a member is known to have left it, so that no further step can be taken in it. Until that is known, members
    that were lost may go on: ``leases`` says until when, by their agents (:mod:`hvtrain.control.lease`).
    """

    number: int = 0
    status: Status = Status.NONE
    since: float = 0.0
    members: tuple[str, ...] = ()
    formed: frozenset[str] = frozenset()
    moved: float = 0.0  # when a member last got on with forming it; or when all were last asked to pause
    broken_at: float = 0.0  # when the round before it ended: what replacements are measured from
    left: bool = False
    leases: Mapping[str, float] = field(default_factory=dict)

    @property
    def over_at(self) -> float:
        """From when on no further step can be taken in it, once all its members have come back or are lost."""
        return 0.0 if self.left else max(self.leases.values(), default=0.0)


@dataclass(frozen=True)
class State:
    """``follow``: the job takes every slot that agents offer, within its bounds; else ``wanted`` workers."""

    wanted: int
    limits: Limits
    follow: bool = False
    phase: Phase = Phase.GATHERING
    since: float = 0.0
    agents: Fleet = field(default_factory=Fleet)
    workers: Crew = field(default_factory=Crew)
    round: Round = Round()
    next_number: int = 0
    born: bool = False  # whether a round has ever been active
    progress: int = 0  # highest step that anybody has committed
    pace: float = 0.0  # slowest step so far, seconds
    paced: float = 0.0  # when that was last looked at
    readying: float = 0.0  # how long workers take from their start until they are ready, seconds; see readied()
    failed_step: int = -1
    failures: int = 0  # at failed_step
    outside: int = 0  # how many of those came from outside
    first_failure: Cause | None = None
    open_failure: Cause | None = None  # the latest one; counted once the survivors have said how far they were
    false_starts: int = 0  # workers that failed by themselves before they were ready, in a row
    first_false_start: Cause | None = None
    unformed: int = 0  # attempts to form a round that failed without a loss, in a row
    retry_at: float = 0.0  # the next attempt is not made before
    trouble: str = ""  # what was said of the latest such attempt
    known: frozenset[str] = frozenset()  # hosts whose workers have reached the others
    unreached: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # host -> when its newcomers were left out
    losses: tuple[float, ...] = ()  # times of the last hour's losses
    hungry_since: float | None = None  # since when there are too few workers for a round, and none on the way
    due: float | None = None  # no wait for a worker or an agent ends before; see watching.deadline
    cause: Cause | None = None
    stop_signal: int = 0
    stopped: bool = False  # whether the latest to finish did so because of a stop
    insisted: bool = False  # whether a person at the launcher has asked already
    dismissed: bool = False
    killed: bool = False

    def __post_init__(self) -> None:
        for name, table in (("agents", Fleet), ("workers", Crew)):
            given = getattr(self, name)
            if not isinstance(given, table):
                object.__setattr__(self, name, table(dict(given)))

    def worker(self, name: str, **changes) -> State:
        """This state with changes to one worker."""
        return replace(self, workers=self.workers.put({name: replace(self.workers[name], **changes)}))

    def with_workers(self, changed: Mapping[str, Worker]) -> State:
        return replace(self, workers=self.workers.put(changed)) if changed else self

    def without(self, name: str) -> State:
        return replace(self, workers=self.workers.without(name))

    def agent(self, name: str, **changes) -> State:
        return replace(self, agents=self.agents.put(name, replace(self.agents[name], **changes)))

    def in_round(self, **changes) -> State:
        """This state with changes to its round."""
        return replace(self, round=replace(self.round, **changes))

    def at(self, *stages: Stage) -> Iterator[tuple[str, Worker]]:
        """Name and worker of everybody in one of ``stages``, the oldest first."""
        return self.workers.at(*stages)

    @property
    def target(self) -> int:
        """How many workers the round should have."""
        slots = self.agents.slots  # of which some are the spares', if there are more than the job was started for
        size = max(slots - self.limits.spares, min(self.wanted, slots)) if self.follow else self.wanted
        return max(1, self.limits.min_workers, min(size, self.limits.max_workers or size))

    @property
    def least(self) -> int:
        """With how many workers a round can do."""
        if self.stop_signal:
            return 1  # there is only the last step to be saved
        return self.limits.min_workers if self.limits.elastic else self.target

    @property
    def running(self) -> bool:
        """Whether there is a round that can break."""
        return self.round.status in (Status.FORMING, Status.ACTIVE, Status.PAUSING)

    @property
    def replace_limit(self) -> float:
        """How long the others wait for a replacement, seconds; counted from when the round ended."""
        if self.limits.replace is not None:
            return self.limits.replace
        if self.readying > REPLACE_CEILING:
            return REPLACE_FLOOR
        return min(max(REPLACE_FLOOR, REPLACE_FACTOR * self.readying), REPLACE_CEILING)

    def readied(self, seconds: float) -> State:
        """This state after a worker has taken so many seconds to get ready.

        Up at once, down by half with each worker: the first ones count the import of their framework, and start all at
        once; a replacement is forked from a process that has done that.
        """
        return replace(self, readying=max(seconds, 0.5 * self.readying))

    @property
    def step_limit(self) -> float:
        """How long a worker may go without getting anything done, seconds."""
        if self.limits.step is not None:
            return self.limits.step
        failures = self.failures if self.progress <= self.failed_step else 0
        return max(STEP_FLOOR, STEP_FACTOR * self.pace) * 2 ** min(failures, 3)
