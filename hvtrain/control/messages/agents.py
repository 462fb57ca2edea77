"""Messages from and to agents."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Union

from pydantic import Field

from hvtrain.control.messages.base import Beat, Count, Event, Exit, Handle, Message, Name, Words


class AgentHello(Message):
    """First message of an agent. ``job_digest`` shows that all agents were started with the same job; one without
    ``slots`` stands by for as long as the job lasts. ``threads``: what each of its workers could compute with."""

    type: Literal["agent_hello"] = "agent_hello"
    agent: Handle
    host: Handle
    slots: int = Field(ge=0, le=4096)
    pid: Count
    version: str = Field(max_length=50)
    job_digest: str = Field(max_length=64)
    threads: int = Field(1, ge=1, le=65536)


class JobAsk(Message):
    """First message of an agent that has only the token: what is the job?

    ``agent``: the name it wishes for, or "". ``machine``: equal for agents that share memory (:mod:`hvtrain.control.guests`).
    ``versions``: those of :mod:`hvtrain.control.versions`.
    """

    type: Literal["job_ask"] = "job_ask"
    agent: Annotated[Handle, Field(max_length=100)] | Literal[""] = ""
    host: Annotated[Handle, Field(max_length=90)]
    machine: str = Field("", max_length=200)
    slots: int = Field(ge=0, le=4096)
    versions: dict[Name, Name] = Field(default_factory=dict, max_length=50)


class JobGiven(Message):
    """To an agent that asked: its name and its host's in this job, and the job.

    ``boot`` is a boot record without the address and the token, which the agent knows; ``cwd``: where the launcher was
    started, for paths in the job; ``code``: the files of the job's code, with digests.
    """

    type: Literal["job_given"] = "job_given"
    agent: Handle
    host: Handle
    boot: dict[str, Any]
    job_digest: str
    cwd: str
    code: dict[str, str]


class Start(Message):
    """To an agent: fork (or spawn) this worker.

    ``rank`` is provisional and names its log; ``local_rank`` chooses its device; ``round`` is the first that it can
    be in; ``threads``: how many it computes with.
    """

    type: Literal["start"] = "start"
    worker: Handle
    rank: Count
    local_rank: Count = 0
    round: int = Field(1, ge=1)
    threads: int = Field(1, ge=1, le=65536)


class Kill(Message):
    """To an agent: send ``signal`` to this worker, after having it write its ``stacks`` to its log."""

    type: Literal["kill"] = "kill"
    worker: Handle
    stacks: bool = False
    signal: int = Field(9, ge=1, le=64)


class Refused(Message):
    """To an agent: the job gives it no workers, for this ``reason``. One that a person has added ends."""

    type: Literal["refused"] = "refused"
    reason: Words


class End(Message):
    """To an agent: the job is over; end with this exit code and leave nothing behind."""

    type: Literal["end"] = "end"
    exit_code: Exit
    reason: Words = ""


class Exited(Message):
    """From an agent: a worker process has been reaped. ``signal`` is 0 unless a signal ended it."""

    type: Literal["exited"] = "exited"
    worker: Handle
    code: Exit
    signal: Exit


class LoadFailed(Message):
    """From an agent: the framework or the user's module cannot be imported, or no worker can be forked."""

    type: Literal["load_failed"] = "load_failed"
    exit_code: Exit
    reason: Words
    traceback: Words = ""


class Notice(Message):
    """From an agent: something a user should read, for the console and events.jsonl."""

    type: Literal["notice"] = "notice"
    event: Event
    text: Words


class StopAsked(Message):
    """From an agent: it was told to stop (``signal``: the signal's number)."""

    type: Literal["stop_asked"] = "stop_asked"
    signal: int = Field(ge=1, le=64)


FromAgent = Union[AgentHello, JobAsk, Exited, LoadFailed, Notice, StopAsked, Beat]
ToAgent = Union[JobGiven, Start, Kill, Refused, End]
