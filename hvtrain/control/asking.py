"""An agent that has nothing but the coordinator's address and the job's token asks what the job is.

::

    agent --proof, JobAsk (host, slots, versions)--> coordinator
    agent <--JobGiven (a name, the job)------------- coordinator        or End (why not), if versions differ
    agent --proof, AgentHello----------------------> coordinator        a connection of its own, as every agent's
"""

from __future__ import annotations

import asyncio

from hvtrain.control import messages
from hvtrain.control.client import Address, Link
from hvtrain.errors import EnvironmentNotReady, UsageError

ANSWER_SECONDS = 15.0
"""How long the coordinator may take to answer."""


async def ask(address: Address, request: messages.JobAsk) -> messages.JobGiven:
    """What the job is.

    Raises:
        CoordinatorGone: nobody listens there, or not yet.
        TokenRefused: the two ends do not know the same token.
        UsageError: the coordinator gives a reason why this agent cannot join.
        EnvironmentNotReady: it cannot be reached, or does not answer.
    """
    link = Link(address)
    await link.open(request)
    try:
        answer = await asyncio.wait_for(link.receive(), ANSWER_SECONDS)
    except asyncio.TimeoutError:
        answer = None
    finally:
        await link.close()
    if isinstance(answer, messages.JobGiven):
        return answer
    if isinstance(answer, messages.End):
        raise UsageError(f"the coordinator at {address.host}:{address.port} does not take this agent: {answer.reason}")
    raise EnvironmentNotReady(f"the coordinator at {address.host}:{address.port} did not say what its job is. It may be "
                              "of another version of hvtrain, or its job may be over.")
