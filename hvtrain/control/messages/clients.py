"""Messages from and to people's commands."""

from __future__ import annotations

from typing import Any, Literal, Union

from pydantic import Field

from hvtrain.control.messages.base import Message, Words


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
    """To a person: the job's agents, workers and round; the keys are those of :mod:`hvtrain.control.overview`."""

    type: Literal["overview"] = "overview"
    job: dict[str, Any]
    agents: list[dict[str, Any]]
    workers: list[dict[str, Any]]


class Answer(Message):
    """To a person: what became of a request."""

    type: Literal["answer"] = "answer"
    accepted: bool
    text: Words


FromClient = Union[ClientHello, Query, Scale]
ToClient = Union[Overview, Answer]
