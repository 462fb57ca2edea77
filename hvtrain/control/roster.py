"""The state of the membership machine: phases, agents, workers, and the limits of its waits."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Mapping

from hvtrain.control.causes import Cause


class Phase(Enum):
    GATHERING = "gathering"  # waiting for agents with enough slots
    STARTING = "starting"  # workers are being forked and build their models
    RUNNING = "running"  # a round is active
    ENDING = "ending"  # a cause is known; workers finish what they must
    OVER = "over"


@dataclass(frozen=True)
class Limits:
    """The waits of this machine, seconds; each is a key of the job file."""

    start: float  # launch.start_timeout
    stop: float  # launch.stop_timeout
    heartbeat: float  # elastic.heartbeat_timeout
    verdict: float = 2.0  # elastic.replace_timeout: how long a lost peer's own account of its end is awaited


@dataclass(frozen=True)
class Worker:
    agent: str
    rank: int
    ready: bool = False
    seated: bool = False
    told: bool = False  # has said how its loop ended
    done: bool = False  # has told, or will never tell
    gone: bool = False  # its process has been reaped
    ended_well: bool = False
    last_beat: float = 0.0
    step: int = 0


@dataclass(frozen=True)
class Agent:
    host: str
    slots: int


@dataclass(frozen=True)
class State:
    wanted: int
    limits: Limits
    phase: Phase = Phase.GATHERING
    since: float = 0.0
    agents: Mapping[str, Agent] = field(default_factory=dict)
    workers: Mapping[str, Worker] = field(default_factory=dict)
    round: int = 0
    cause: Cause | None = None
    stop_signal: int = 0
    insisted: bool = False  # whether a person at the launcher has asked already
    cut: bool = False
    hushed: bool = False  # who never came to train has been killed
    killed: bool = False
