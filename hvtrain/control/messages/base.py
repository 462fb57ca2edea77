"""What all messages share: frozen, nothing extra, every field within bounds."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

MAX_BYTES = 1 << 20
"""Largest message accepted, bytes. A resolved job, a traceback or a line of metrics is far below it."""

MAX_WORDS = 30_000
"""Characters of a text for people: of a longer one the beginning and the end are kept, so that it can be sent."""


def _shortened(text: Any) -> Any:
    if not isinstance(text, str) or len(text) <= MAX_WORDS:
        return text
    return f"{text[:MAX_WORDS // 3]}\n[... {len(text) - MAX_WORDS} characters left out ...]\n{text[-MAX_WORDS // 2:]}"


Words = Annotated[str, BeforeValidator(_shortened)]
"""A text for people, shortened to MAX_WORDS."""

Name = Annotated[str, Field(max_length=200)]
"""The name of something measured, and the like."""

Handle = Annotated[str, Field(max_length=200, pattern=r"^[^/\\\x00-\x1f\x7f.][^/\\\x00-\x1f\x7f]*$")]
"""Who somebody is: an agent, a worker, a host. It becomes part of the names of files and processes and of lines of logs:
so it leads out of no directory, and has no control characters."""

OWN_EVENTS = frozenset({"started", "ended", "rewound", "stop_requested", "worker_lost", "stall", "resize", "rollback",
                        "round"})
"""Events that are the coordinator's to tell; nobody may send them."""


def _not_our_own(name: str) -> str:
    if name in OWN_EVENTS:
        raise ValueError(f"{name} is an event that only the coordinator tells")
    return name


Event = Annotated[Name, AfterValidator(_not_our_own)]
"""The name of an event for events.jsonl."""

Count = Annotated[int, Field(ge=0, le=2**53)]
"""Steps, bytes, process ids: what every reader of JSON can hold."""

Exit = Annotated[int, Field(ge=-2**31, le=2**31)]
"""A process's exit code, or the number of the signal that ended it."""

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Message(BaseModel):
    # A loss may be NaN; as JSON's null it would be no number any more.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")


class Beat(Message):
    """From a worker or an agent: alive. ``step``: committed steps; ``ticks`` grows with everything that gets done.

    ``waiting``: it waits for the others in a collective operation. ``slowest``: the longest recent time between two
    ticks, seconds. ``stamp``: the time by the worker's own clock, which the answer repeats; 0 asks for none.
    """

    type: Literal["beat"] = "beat"
    step: Count = 0
    ticks: Count = 0
    waiting: bool = False
    slowest: Seconds = 0.0
    stamp: Seconds = 0.0
