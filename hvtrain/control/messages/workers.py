"""Messages from and to workers."""

from __future__ import annotations

from typing import Any, Literal, Union

from pydantic import Field

from hvtrain.control.messages.base import Beat, Count, Event, Exit, Handle, Message, Name, Seconds, Words


class WorkerHello(Message):
    """First message of a worker; ``again`` if it has lost its connection and is back."""

    type: Literal["worker_hello"] = "worker_hello"
    worker: Handle
    pid: Count
    again: bool = False


class Ready(Message):
    """From a worker: model and data are built; it can take a seat in a round.

    ``outline`` describes the run for the console (total steps, samples per epoch, parameters). ``step``: committed
    steps of the state it holds, -1 if it holds none. ``round``: the one it comes back from, ``reason`` why.
    """

    type: Literal["ready"] = "ready"
    outline: dict[Name, Count] = Field(default_factory=dict, max_length=50)
    step: int = Field(-1, ge=-1, le=2**53)
    round: Count = 0
    reason: Words = ""


class Formed(Message):
    """From a member: it is connected to the others, and holds the state of ``step``.

    ``source``: where the state of the round came from; ``known``: the highest step that is known to have been
    committed; ``seconds``: how long what took.
    """

    type: Literal["formed"] = "formed"
    round: int = Field(ge=1)
    step: Count
    source: Literal["start", "members", "memory", "checkpoint"] = "members"
    known: int = Field(0, ge=-1, le=2**53)
    received_bytes: Count = 0
    seconds: dict[Name, Seconds] = Field(default_factory=dict, max_length=50)


class Stepped(Message):
    """From a member: it has committed its first step in this round."""

    type: Literal["stepped"] = "stepped"
    round: int = Field(ge=1)
    step: Count


class Leaving(Message):
    """From a worker: it wants to leave at the next step boundary."""

    type: Literal["leaving"] = "leaving"


class Report(Message):
    """From rank 0: measured values (``kind`` train or eval), or an event of the run."""

    type: Literal["report"] = "report"
    kind: Literal["train", "eval", "event"]
    step: Count
    epoch: Count = 0
    name: Event = ""
    values: dict[str, Any] = Field(default_factory=dict)


class Finished(Message):
    """From a worker: its loop has ended as it should; ``stopped`` if that was on request, ``left`` if it alone left."""

    type: Literal["finished"] = "finished"
    step: Count
    stopped: bool = False
    left: bool = False
    saved_step: Count | None = None
    summary: dict[str, Any] = Field(default_factory=dict)


class Failed(Message):
    """From a worker: its loop has ended by an exception.

    ``lost_peer`` marks the failures that are only echoes of another worker's end.
    """

    type: Literal["failed"] = "failed"
    exit_code: Exit
    reason: Words
    traceback: Words = ""
    step: Count = 0
    lost_peer: bool = False
    saved_step: Count | None = None


class Seat(Message):
    """To a worker: its place in a round, and where the round's rendezvous listens."""

    type: Literal["seat"] = "seat"
    round: int = Field(ge=1)
    rank: int = Field(ge=0)
    size: int = Field(ge=1)
    local_rank: int = Field(ge=0)
    local_size: int = Field(ge=1)
    cross_rank: int = Field(ge=0)
    cross_size: int = Field(ge=1)
    host: Handle
    rendezvous_host: str
    rendezvous_port: int = Field(ge=1, le=65535)
    interface: str
    secret: str = Field(default="", max_length=128, repr=False)  # of which auth.round_secret makes the round's
    fresh: bool = True  # no step has been taken in this job yet
    first: bool = True  # by this coordinator; fresh is also by the one that it takes over from
    job: str = Field("", max_length=40)  # what the checkpoints' fence calls it
    apart: bool = False  # sums must not begin within hosts: control/spread.py


class Stop(Message):
    """To a worker: agree with the others on a step, write a checkpoint there, and finish."""

    type: Literal["stop"] = "stop"
    signal: int = Field(ge=1, le=64)


class Pause(Message):
    """To a member: stop together with the others at the next step boundary; another round will be formed."""

    type: Literal["pause"] = "pause"
    round: int = Field(ge=1)


class Cut(Message):
    """To a member: the round is broken; come back for another one."""

    type: Literal["cut"] = "cut"
    round: int = Field(ge=1)
    reason: Words = ""


class Dismiss(Message):
    """To a worker: it is not needed any more; ``salvage`` asks it to save the last committed step first."""

    type: Literal["dismiss"] = "dismiss"
    salvage: bool = False
    reason: Words = ""


class Heard(Message):
    """To a worker: its beat with this ``stamp`` has come, and it counts as a worker of the job."""

    type: Literal["heard"] = "heard"
    stamp: Seconds


FromWorker = Union[WorkerHello, Ready, Formed, Stepped, Leaving, Report, Finished, Failed, Beat]
ToWorker = Union[Seat, Pause, Stop, Cut, Dismiss, Heard]
