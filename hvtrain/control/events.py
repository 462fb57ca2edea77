"""What can happen to a job's membership (events), and what the coordinator is then to do (actions)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Union

from hvtrain.control.causes import Cause


@dataclass(frozen=True)
class AgentJoined:
    agent: str
    host: str
    slots: int


@dataclass(frozen=True)
class AgentBeat:
    agent: str


@dataclass(frozen=True)
class AgentLost:
    """``ended``: its process was seen to end, and the kernel ends its workers with it; else the network may be to blame."""

    agent: str
    ended: bool = False


@dataclass(frozen=True)
class AgentLeaving:
    """An agent was told that its host will go (SIGTERM): its workers leave at the next step boundary."""

    agent: str


@dataclass(frozen=True)
class WorkerReady:
    """A worker can take a seat. ``round`` is the one it comes back from, 0 if it has been in none.

    ``step``: committed steps of the state that it holds, -1 if it holds none. ``reason``: why it comes back.
    """

    worker: str
    step: int = -1
    round: int = 0
    reason: str = ""


@dataclass(frozen=True)
class WorkerFormed:
    """A member is connected to all others and has the state of ``step``."""

    worker: str
    round: int
    step: int


@dataclass(frozen=True)
class WorkerBeat:
    """A sign of life. ``slowest``: the longest recent time between two ticks, seconds. ``stamp``: see RenewLease."""

    worker: str
    step: int
    ticks: int = 0
    waiting: bool = False
    slowest: float = 0.0
    stamp: float = 0.0


@dataclass(frozen=True)
class WorkerLeaving:
    """A worker asks to leave at the next step boundary."""

    worker: str


@dataclass(frozen=True)
class WorkerEnded:
    """A worker has said how its loop ended; ``cause`` is None if it ended as it should.

    ``stopped``: it ended because a stop was asked for, perhaps of this worker alone. ``left``: because it,
    and nobody else, was told to go.
    """

    worker: str
    cause: Cause | None
    stopped: bool = False
    left: bool = False
    step: int | None = None


@dataclass(frozen=True)
class WorkerExited:
    worker: str
    code: int
    signal: int


@dataclass(frozen=True)
class ScaleRequested:
    """A person wants so many workers from now on."""

    workers: int


@dataclass(frozen=True)
class JobFailed:
    """Something outside the workers makes the job impossible (import error, foreign agent, disk)."""

    cause: Cause


@dataclass(frozen=True)
class StopRequested:
    """``insist``: by a person at the launcher, whose second request does not wait for a checkpoint.

    A service manager signals all processes of a job at once; their agents' requests are one and the same.
    """

    signal: int
    insist: bool = False


@dataclass(frozen=True)
class Tick:
    pass


Event = Union[AgentJoined, AgentBeat, AgentLost, AgentLeaving, WorkerReady, WorkerFormed, WorkerBeat, WorkerLeaving,
              WorkerEnded, WorkerExited, ScaleRequested, JobFailed, StopRequested, Tick]


# Actions: what the coordinator carries out ------------------------------------------------------------
@dataclass(frozen=True)
class StartWorker:
    """``local_rank`` counts the workers of its host and chooses its device; ``rank`` names its log."""

    worker: str
    agent: str
    rank: int
    local_rank: int = 0


@dataclass(frozen=True)
class FormRound:
    """``members`` in rank order, each with its host. ``fresh``: no step has been taken in this job yet."""

    round: int
    members: tuple[tuple[str, str], ...]
    fresh: bool = True


@dataclass(frozen=True)
class RoundActive:
    """All members of the round have connected and hold the state of ``step``; ``before`` was the highest known."""

    round: int
    step: int
    before: int


@dataclass(frozen=True)
class PauseRound:
    """Ask these members to stop together at the next step boundary, because of ``reason``."""

    workers: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class CutRound:
    """Tell these workers that their round is broken; they are to come back for another one."""

    round: int
    workers: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class ReportLoss:
    """A worker is lost: for people and events.jsonl."""

    worker: str
    rank: int
    agent: str
    cause: Cause


@dataclass(frozen=True)
class TellStop:
    workers: tuple[str, ...]
    signal: int


@dataclass(frozen=True)
class Dismiss:
    """These workers are not needed any more and end; ``salvager`` is to save the last committed step first.

    ``reason``: if there is more to say.
    """

    workers: tuple[str, ...]
    salvager: str | None = None
    reason: str = ""


@dataclass(frozen=True)
class KillWorker:
    """``stacks``: have it write what it was doing to its log first."""

    worker: str
    agent: str
    stacks: bool = False


@dataclass(frozen=True)
class RenewLease:
    """Tell this worker that its beat with this ``stamp`` has counted (:mod:`hvtrain.control.lease`)."""

    worker: str
    stamp: float


@dataclass(frozen=True)
class DropAgent:
    """An agent does not answer: have nothing more to do with it."""

    agent: str


@dataclass(frozen=True)
class ReleaseAgent:
    """An agent that is leaving has no workers any more: it may end."""

    agent: str


@dataclass(frozen=True)
class RefuseAgent:
    """An agent gets no workers, from now on: tell it why."""

    agent: str
    reason: str


@dataclass(frozen=True)
class ReportLeftOut:
    """The newcomers of a host are left out, which people and events.jsonl are told. ``again``: others are tried later."""

    host: str
    reason: str
    again: bool


@dataclass(frozen=True)
class EndJob:
    cause: Cause


Action = Union[StartWorker, FormRound, RoundActive, PauseRound, CutRound, ReportLoss, TellStop, Dismiss, KillWorker,
               DropAgent, ReleaseAgent, RefuseAgent, ReportLeftOut, RenewLease, EndJob]
