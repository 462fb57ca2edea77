"""The messages between coordinator, agents, workers and people: typed, validated, small. JSON, never pickle.

::

    agent  --JobAsk-----------------------> coordinator      (who has only the token; <-JobGiven- and comes again)
    agent  --AgentHello-------------------> coordinator      worker --WorkerHello, Ready, Formed-----> coordinator
    agent  <-Start, Kill, Refused, End----- coordinator      worker <-Seat, Pause, Cut, Stop, Dismiss- coordinator
    agent  --Exited, LoadFailed, Notice---> coordinator      worker --Beat, Stepped, Report----------> coordinator
    agent  --StopAsked, Beat--------------> coordinator      worker --Leaving, Finished, Failed------> coordinator
                                                             worker <-Heard------------------------- coordinator

    person --ClientHello, Query, Scale----> coordinator --Overview, Answer--> person

``base`` has what all share; ``agents``, ``workers`` and ``clients`` have one peer's each; ``codec`` makes text of them.
"""

from __future__ import annotations

from hvtrain.control.messages.agents import (
    AgentHello, End, Exited, FromAgent, JobAsk, JobGiven, Kill, LoadFailed, Notice, Refused, Start, StopAsked,
    ToAgent,
)
from hvtrain.control.messages.base import MAX_BYTES, MAX_WORDS, Beat, Message
from hvtrain.control.messages.clients import Answer, ClientHello, FromClient, Overview, Query, Scale, ToClient
from hvtrain.control.messages.codec import decode_inbound, decode_outbound, encode
from hvtrain.control.messages.workers import (
    Cut, Dismiss, Failed, Finished, Formed, FromWorker, Heard, Leaving, Pause, Ready, Report, Seat, Stepped, Stop,
    ToWorker, WorkerHello,
)

__all__ = [
    "AgentHello", "Answer", "Beat", "ClientHello", "Cut", "Dismiss", "End", "Exited", "Failed", "Finished", "Formed",
    "FromAgent", "FromClient", "FromWorker", "Heard", "JobAsk", "JobGiven", "Kill", "Leaving", "LoadFailed", "MAX_BYTES",
    "MAX_WORDS", "Message", "Notice", "Overview", "Pause", "Query", "Ready", "Refused", "Report", "Scale", "Seat",
    "Start", "Stepped", "Stop", "StopAsked", "ToAgent", "ToClient", "ToWorker", "WorkerHello", "decode_inbound", "decode_outbound", "encode",
]
