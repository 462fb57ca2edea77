"""Messages as text and back. What is no message raises ProtocolError, and nothing else."""

from __future__ import annotations

import json
from typing import Annotated, Union

from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from hvtrain.control.messages.agents import FromAgent, ToAgent
from hvtrain.control.messages.base import MAX_BYTES, Message
from hvtrain.control.messages.clients import FromClient, ToClient
from hvtrain.control.messages.workers import FromWorker, ToWorker
from hvtrain.errors import ProtocolError

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
    size = len(text.encode())
    if size > MAX_BYTES:
        raise ProtocolError(f"a {type(message).__name__} message of {size} bytes exceeds {MAX_BYTES}")
    return text


def decode_inbound(text: str | bytes) -> Message:
    """A message that the coordinator may receive. Raises ProtocolError for anything else."""
    return _decode(_INBOUND, text)


def decode_outbound(text: str | bytes) -> Message:
    """A message that an agent, a worker or a person may receive. Raises ProtocolError for anything else."""
    return _decode(_OUTBOUND, text)


def _decode(adapter: TypeAdapter, text: str | bytes) -> Message:
    if len(text) > MAX_BYTES:
        raise ProtocolError(f"a message of {len(text)} bytes came, at most {MAX_BYTES} are accepted")
    try:
        return adapter.validate_json(text)
    except ValidationError as error:
        what = str(error.errors(include_url=False, include_input=False, include_context=False)[:3])
        raise ProtocolError(f"a malformed message came: {what[:500]}") from None
