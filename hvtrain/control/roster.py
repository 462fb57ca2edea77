"""The state of the membership machine: phases, stages, agents, workers, the round, and the limits of its waits."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from types import MappingProxyType
from typing import Iterator, Mapping

from hvtrain.control.causes import Cause


class Phase(Enum):
    GATHERING = "gathering"  # waiting for agents with enough slots
    OPEN = "open"  # workers start, train, are lost and replaced
    ENDING = "ending"  # a cause is known; workers finish what they must
    OVER = "over"


class Stage(Enum):
    """Where a worker stands."""

    STARTING = "starting"  # its start was ordered; it builds its model and data
    READY = "ready"  # waits for a seat
    SEATED = "seated"  # a member of the round
    RETURNING = "returning"  # its round is over; it is to say that it is ready again
    LEAVING = "leaving"  # was told to go
    FINISHED = "finished"  # its loop has ended well; it keeps its state until all have
    DOOMED = "doomed"  # is being killed; nobody waits for it any more


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
    replace: float = 2.0  # elastic.replace_timeout
    form: float = 30.0  # comm.timeout
    step: float | None = None  # elastic.step_timeout, None for auto
    elastic: bool = True  # elastic.enabled
    min_workers: int = 1
    max_workers: int | None = None
    spares: int = 0
    failures_per_step: int = 3  # elastic.max_failures_per_step
    losses_per_hour: int | None = None  # elastic.max_losses_per_hour


STEP_FLOOR, STEP_FACTOR = 20.0, 10.0
"""elastic.step_timeout: auto is the larger of this many seconds and so many times the slowest step so far."""

FORM_ATTEMPTS = 3
"""A round that cannot be formed so many times in a row, though nobody was lost, ends the job."""


@dataclass(frozen=True)
class Worker:
    """``ticks`` counts what the worker has got done (micro-batches, steps); ``ticked`` is when it last changed.

    ``waiting``: it waits for the others in a collective operation, so it is not the one that holds them up.
    """

    agent: str
    number: int
    rank: int
    stage: Stage = Stage.STARTING
    since: float = 0.0
    last_beat: float = 0.0
    step: int = -1  # committed steps; -1: holds no state of the run yet
    ticks: int = 0
    ticked: float = 0.0
    waiting: bool = False
    local: int = 0  # which of its host's devices it uses
    leave: bool = False  # is to leave at the next step boundary

    @property
    def alive(self) -> bool:
        return self.stage is not Stage.DOOMED

    @property
    def taking_part(self) -> bool:
        """It trains or may train."""
        return self.stage in (Stage.STARTING, Stage.READY, Stage.SEATED, Stage.RETURNING)


@dataclass(frozen=True)
class Agent:
    host: str
    slots: int
    last_beat: float = 0.0
    leaving: bool = False


@dataclass(frozen=True)
class Round:
    number: int = 0
    status: Status = Status.NONE
    since: float = 0.0
    members: tuple[str, ...] = ()
    formed: frozenset[str] = frozenset()
    broken_at: float = 0.0  # when the round before it ended: what replacements are measured from


@dataclass(frozen=True)
class State:
    """``follow``: the job takes every slot that agents offer, within its bounds; else ``wanted`` workers."""

    wanted: int
    limits: Limits
    follow: bool = False
    phase: Phase = Phase.GATHERING
    since: float = 0.0
    agents: Mapping[str, Agent] = field(default_factory=dict)
    workers: Mapping[str, Worker] = field(default_factory=dict)
    round: Round = Round()
    next_number: int = 0
    born: bool = False  # whether a round has ever been active
    progress: int = 0  # highest step that anybody has committed
    pace: float = 0.0  # slowest step so far, seconds
    failed_step: int = -1
    failures: int = 0  # at failed_step
    first_failure: Cause | None = None
    open_failure: Cause | None = None  # the latest one; counted once the survivors have said how far they were
    unformed: int = 0  # attempts to form a round that failed without a loss, in a row
    losses: tuple[float, ...] = ()  # times of the last hour's losses
    hungry_since: float | None = None  # since when there are fewer workers than min_workers
    cause: Cause | None = None
    stop_signal: int = 0
    insisted: bool = False  # whether a person at the launcher has asked already
    dismissed: bool = False
    killed: bool = False

    def worker(self, name: str, **changes) -> State:
        """This state with changes to one worker."""
        return self.with_workers({name: replace(self.workers[name], **changes)})

    def with_workers(self, changed: Mapping[str, Worker]) -> State:
        return replace(self, workers=MappingProxyType({**self.workers, **changed}))

    def without(self, name: str) -> State:
        return replace(self, workers=MappingProxyType({n: w for n, w in self.workers.items() if n != name}))

    def agent(self, name: str, **changes) -> State:
        return replace(self, agents=MappingProxyType({**self.agents, name: replace(self.agents[name], **changes)}))

    def in_round(self, **changes) -> State:
        """This state with changes to its round."""
        return replace(self, round=replace(self.round, **changes))

    def at(self, *stages: Stage) -> Iterator[tuple[str, Worker]]:
        """Name and worker of everybody in one of ``stages``, the oldest first."""
        return ((name, worker) for name, worker in self.workers.items() if worker.stage in stages)

    @property
    def target(self) -> int:
        """How many workers the round should have."""
        slots = sum(agent.slots for agent in self.agents.values() if not agent.leaving)
        size = slots if self.follow else self.wanted
        return max(1, min(size, self.limits.max_workers or size))

    @property
    def step_limit(self) -> float:
        """How long a worker may go without getting anything done, seconds."""
        if self.limits.step is not None:
            return self.limits.step
        return max(STEP_FLOOR, STEP_FACTOR * self.pace) * 2 ** min(self.failures, 3)
