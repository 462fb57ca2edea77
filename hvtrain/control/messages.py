"""The messages between coordinator, agents, workers and people: typed, validated, small. JSON, never pickle.

::

    agent  --AgentHello-------------------> coordinator      worker --WorkerHello, Ready, Formed-----> coordinator
    agent  <-Start, Kill, End-------------- coordinator      worker <-Seat, Pause, Cut, Stop, Dismiss- coordinator
    agent  --Exited, LoadFailed, Notice---> coordinator      worker --Beat, Stepped, Report----------> coordinator
    agent  --StopAsked, Beat--------------> coordinator      worker --Leaving, Finished, Failed------> coordinator

    person --ClientHello, Query, Scale----> coordinator --Overview, Answer--> person
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Union

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from hvtrain.errors import ProtocolError

MAX_BYTES = 1 << 20
"""Largest message accepted, bytes. A resolved job, a traceback or a line of metrics is far below it."""


MAX_WORDS = 30_000
"""Characters of a text for people: of a longer one the beginning and the end are kept, so that it can be sent."""


def _shortened(text: Any) -> Any:
    if not isinstance(text, str) or len(text) <= MAX_WORDS:
        return text
    return f"{text[:MAX_WORDS // 3]}\n[... {len(text) - MAX_WORDS} characters left out ...]\n{text[-MAX_WORDS // 2:]}"


Words = Annotated[str, BeforeValidator(_shortened)]


class Message(BaseModel):
    # A loss may be NaN; as JSON's null it would be no number any more.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")


class AgentHello(Message):
    """First message of an agent. ``job_digest`` shows that all agents were started with the same job."""

    type: Literal["agent_hello"] = "agent_hello"
    agent: str = Field(max_length=200)
    host: str = Field(max_length=255)
    slots: int = Field(ge=1, le=4096)
    pid: int
    version: str = Field(max_length=50)
    job_digest: str = Field(max_length=64)


class Start(Message):
    """To an agent: fork (or spawn) this worker.

    ``rank`` is provisional and names its log; ``local_rank`` chooses its device; ``round`` is the first that it can
    be in.
    """

    type: Literal["start"] = "start"
    worker: str
    rank: int
    local_rank: int = 0
    round: int = 1


class Kill(Message):
    """To an agent: send ``signal`` to this worker, after having it write its ``stacks`` to its log."""

    type: Literal["kill"] = "kill"
    worker: str
    stacks: bool = False
    signal: int = 9


class End(Message):
    """To an agent: the job is over; end with this exit code and leave nothing behind."""

    type: Literal["end"] = "end"
    exit_code: int
    reason: Words = ""


class Exited(Message):
    """From an agent: a worker process has been reaped. ``signal`` is 0 unless a signal ended it."""

    type: Literal["exited"] = "exited"
    worker: str
    code: int
    signal: int


class LoadFailed(Message):
    """From an agent: the framework or the user's module cannot be imported, or no worker can be forked."""

    type: Literal["load_failed"] = "load_failed"
    exit_code: int
    reason: Words
    traceback: Words = ""


class Notice(Message):
    """From an agent: something a user should read, for the console and events.jsonl."""

    type: Literal["notice"] = "notice"
    event: str = Field(max_length=100)
    text: Words


class StopAsked(Message):
    """From an agent: it was told to stop (``signal``: the signal's number)."""

    type: Literal["stop_asked"] = "stop_asked"
    signal: int


class WorkerHello(Message):
    """First message of a worker; ``again`` if it has lost its connection and is back."""

    type: Literal["worker_hello"] = "worker_hello"
    worker: str = Field(max_length=200)
    pid: int
    again: bool = False


class Ready(Message):
    """From a worker: model and data are built; it can take a seat in a round.

    ``outline`` describes the run for the console (total steps, samples per epoch, parameters). ``step``: committed
    steps of the state it holds, -1 if it holds none. ``round``: the one it comes back from, ``reason`` why.
    """

    type: Literal["ready"] = "ready"
    outline: dict[str, Any] = Field(default_factory=dict)
    step: int = Field(-1, ge=-1)
    round: int = Field(0, ge=0)
    reason: Words = ""


class Formed(Message):
    """From a member: it is connected to the others, and holds the state of ``step``.

    ``source``: where the state of the round came from; ``known``: the highest step that is known to have been
    committed; ``seconds``: how long what took.
    """

    type: Literal["formed"] = "formed"
    round: int = Field(ge=1)
    step: int = Field(ge=0)
    source: Literal["start", "members", "memory", "checkpoint"] = "members"
    known: int = 0
    received_bytes: int = 0
    seconds: dict[str, float] = Field(default_factory=dict)


class Stepped(Message):
    """From a member: it has committed its first step in this round."""

    type: Literal["stepped"] = "stepped"
    round: int = Field(ge=1)
    step: int = Field(ge=0)


class Leaving(Message):
    """From a worker: it wants to leave at the next step boundary."""

    type: Literal["leaving"] = "leaving"


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
    host: str
    rendezvous_host: str
    rendezvous_port: int
    interface: str
    fresh: bool = True  # no step has been taken in this job yet


class Stop(Message):
    """To a worker: agree with the others on a step, write a checkpoint there, and finish."""

    type: Literal["stop"] = "stop"
    signal: int


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


class Report(Message):
    """From rank 0: measured values (``kind`` train or eval), or an event of the run."""

    type: Literal["report"] = "report"
    kind: Literal["train", "eval", "event"]
    step: int
    epoch: int = 0
    name: str = ""
    values: dict[str, Any] = Field(default_factory=dict)


class Finished(Message):
    """From a worker: its loop has ended as it should; ``stopped`` if that was on request, ``left`` if it alone left."""

    type: Literal["finished"] = "finished"
    step: int
    stopped: bool = False
    left: bool = False
    saved_step: int | None = None
    summary: dict[str, Any] = Field(default_factory=dict)


class Failed(Message):
    """From a worker: its loop has ended by an exception.

    ``lost_peer`` marks the failures that are only echoes of another worker's end.
    """

    type: Literal["failed"] = "failed"
    exit_code: int
    reason: Words
    traceback: Words = ""
    step: int = 0
    lost_peer: bool = False
    saved_step: int | None = None


class Beat(Message):
    """From a worker or an agent: alive. ``step``: committed steps; ``ticks`` grows with everything that gets done.

    ``waiting``: it waits for the others in a collective operation. ``slowest``: the longest recent time between two
    ticks, seconds.
    """

    type: Literal["beat"] = "beat"
    step: int = 0
    ticks: int = 0
    waiting: bool = False
    slowest: float = Field(0.0, ge=0)


class ClientHello(Message):
    """First message of a person's command (``hvtrain ps``, ``hvtrain scale``)."""

    type: Literal["client_hello"] = "client_hello"
    command: str = Field(max_length=50)


class Query(Message):
    """From a person: who is there?"""

    type: Literal["query"] = "query"


class Scale(Message):
    """From a person: so many workers from now on."""

    type: Literal["scale"] = "scale"
    workers: int = Field(ge=1, le=100_000)


class Overview(Message):
    """To a person: the job's agents, workers and round."""

    type: Literal["overview"] = "overview"
    job: dict[str, Any]
    agents: list[dict[str, Any]]
    workers: list[dict[str, Any]]


class Answer(Message):
    """To a person: what became of a request."""

    type: Literal["answer"] = "answer"
    accepted: bool
    text: Words


FromAgent = Union[AgentHello, Exited, LoadFailed, Notice, StopAsked, Beat]
ToAgent = Union[Start, Kill, End]
FromWorker = Union[WorkerHello, Ready, Formed, Stepped, Leaving, Report, Finished, Failed, Beat]
ToWorker = Union[Seat, Pause, Stop, Cut, Dismiss]
FromClient = Union[ClientHello, Query, Scale]
ToClient = Union[Overview, Answer]

_INBOUND = TypeAdapter(Annotated[Union[FromAgent, FromWorker, FromClient], Field(discriminator="type")])
_OUTBOUND = TypeAdapter(Annotated[Union[ToAgent, ToWorker, ToClient], Field(discriminator="type")])


def encode(message: Message) -> str:
    """The JSON text of a message.

    Raises:
        ProtocolError: it is longer than MAX_BYTES.
    """
    try:
        text = message.model_dump_json()
    except PydanticSerializationError:  # lone surrogates, from a file name in an exception's message, say
        text = json.dumps(message.model_dump(), ensure_ascii=False).encode(errors="replace").decode()
    if len(text.encode()) > MAX_BYTES:
        raise ProtocolError(f"a {type(message).__name__} message of {len(text)} characters exceeds {MAX_BYTES}")
    return text


def decode_inbound(text: str | bytes) -> Message:
    """A message that the coordinator may receive. Raises ProtocolError for anything else."""
    return _decode(_INBOUND, text)


def decode_outbound(text: str | bytes) -> Message:
    """A message that an agent or a worker may receive. Raises ProtocolError for anything else."""
    return _decode(_OUTBOUND, text)


def _decode(adapter: TypeAdapter, text: str | bytes) -> Message:
    if len(text) > MAX_BYTES:
        raise ProtocolError(f"a message of {len(text)} bytes came, at most {MAX_BYTES} are accepted")
    try:
        return adapter.validate_json(text)
    except ValidationError as error:
        what = str(error.errors(include_url=False, include_input=False, include_context=False)[:3])
        raise ProtocolError(f"a malformed message came: {what[:500]}") from None
