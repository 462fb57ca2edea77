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
class AgentLost:
    agent: str


@dataclass(frozen=True)
class WorkerReady:
    worker: str


@dataclass(frozen=True)
class WorkerBeat:
    worker: str
    step: int


@dataclass(frozen=True)
class WorkerEnded:
    """A worker has said how its loop ended; ``cause`` is None if it ended as it should.

    ``stopped``: it ended because a stop was asked for, perhaps of this worker alone.
    """

    worker: str
    cause: Cause | None
    stopped: bool = False


@dataclass(frozen=True)
class WorkerExited:
    worker: str
    code: int
    signal: int


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


Event = Union[AgentJoined, AgentLost, WorkerReady, WorkerBeat, WorkerEnded, WorkerExited, JobFailed,
              StopRequested, Tick]


# Actions: what the coordinator carries out ------------------------------------------------------------
@dataclass(frozen=True)
class StartWorker:
    worker: str
    agent: str
    rank: int
    local_rank: int = 0  # among the workers of its host


@dataclass(frozen=True)
class FormRound:
    """``members`` in rank order, each with its host."""

    round: int
    members: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class TellStop:
    workers: tuple[str, ...]
    signal: int


@dataclass(frozen=True)
class CutRound:
    """Tell these workers that their round is broken; ``salvager`` is to save the last committed step."""

    workers: tuple[str, ...]
    salvager: str | None


@dataclass(frozen=True)
class KillWorker:
    worker: str
    agent: str


@dataclass(frozen=True)
class EndJob:
    cause: Cause


Action = Union[StartWorker, FormRound, TellStop, CutRound, KillWorker, EndJob]
