"""Messages from and to agents."""

from __future__ import annotations

from typing import Literal, Union

from pydantic import Field

from hvtrain.control.messages.base import Beat, Count, Event, Exit, Message, Name, Words


class AgentHello(Message):
    """First message of an agent. ``job_digest`` shows that all agents were started with the same job; one without
    ``slots`` stands by for as long as the job lasts."""

    type: Literal["agent_hello"] = "agent_hello"
    agent: Name
    host: str = Field(max_length=255)
    slots: int = Field(ge=0, le=4096)
    pid: Count
    version: str = Field(max_length=50)
    job_digest: str = Field(max_length=64)


class Start(Message):
    """To an agent: fork (or spawn) this worker.

    ``rank`` is provisional and names its log; ``local_rank`` chooses its device; ``round`` is the first that it can
    be in.
    """

    type: Literal["start"] = "start"
    worker: Name
    rank: Count
    local_rank: Count = 0
    round: int = Field(1, ge=1)


class Kill(Message):
    """To an agent: send ``signal`` to this worker, after having it write its ``stacks`` to its log."""

    type: Literal["kill"] = "kill"
    worker: Name
    stacks: bool = False
    signal: int = Field(9, ge=1, le=64)


class End(Message):
    """To an agent: the job is over; end with this exit code and leave nothing behind."""

    type: Literal["end"] = "end"
    exit_code: Exit
    reason: Words = ""


class Exited(Message):
    """From an agent: a worker process has been reaped. ``signal`` is 0 unless a signal ended it."""

    type: Literal["exited"] = "exited"
    worker: Name
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


FromAgent = Union[AgentHello, Exited, LoadFailed, Notice, StopAsked, Beat]
ToAgent = Union[Start, Kill, End]
