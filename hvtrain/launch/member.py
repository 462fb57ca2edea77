"""One host of a job, and its agent: started, watched, started again when the host comes back.

::

    contact -> agent runs --ends, or is given up--> pause 1, 2, 4 .. 30 s -> contact -> ...
                  |                                   ^ another trouble: said once
                  +-- no longer among the hosts --> leaves at a step boundary
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from typing import TYPE_CHECKING, Any

from hvtrain.control.events import AgentLeaving
from hvtrain.launch.contact import Met
from hvtrain.launch.hostlink import HostLink, Silent
from hvtrain.launch.hosts import HostSlots

if TYPE_CHECKING:
    from hvtrain.launch.fleet import Fleet

log = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Between two attempts to reach a host again, seconds: each pause is twice the one before."""

SETTLED_SECONDS = 60.0
"""An agent that has been there for so long was no false start: the next pause is a short one again."""

LOOK_SECONDS = 0.2
"""How often it is looked whether an agent is connected."""

REJOIN_SECONDS = 5.0
"""An agent that is found on a host that comes back may take so long to come back to the coordinator by itself."""

DEAF_SECONDS = 3.0
"""A host whose agent is given up may take so long to say that it has ended it; then the connection is dead as well."""

ASK_SECONDS = 6.0
"""A host that has not answered a question by then is not asked any more for this time."""

END_SECONDS = 10.0
"""How long agents may take to end after the job."""


class Member:
    """One host of the job, and its agent."""

    def __init__(self, fleet: Fleet, host: HostSlots, number: int):
        self.host, self.name = host, f"{number:04d}@{host.name}"
        self._fleet, self._pause, self._said, self._leaves = fleet, FIRST_PAUSE, "", False
        self._link: HostLink | None = None
        self._task: asyncio.Task | None = None
        self._asked: dict[int, asyncio.Future] = {}  # by the number of the question
        self._numbers = itertools.count(1)

    def begin(self, met: Met | None, after: asyncio.Task | None = None) -> None:
        """Run the agent on a host that was met, or meet it first; not before ``after`` is done."""
        self._task = asyncio.create_task(self._keep(met, after))
        self._task.add_done_callback(self._report)

    @property
    def answers(self) -> bool:
        """Whether its process on the host can be asked."""
        return self._link is not None

    async def ask(self, answer: str, **message: Any) -> dict[str, Any]:
        """What its process on the host answers, beside the agent that runs there; nothing, if it does not."""
        if self._link is None:
            return {}
        number, heard = next(self._numbers), asyncio.get_running_loop().create_future()
        self._asked[number] = heard
        try:
            self._link.tell(number=number, **message)
            await asyncio.wait([heard], timeout=ASK_SECONDS)
        finally:
            self._asked.pop(number, None)
        found = heard.result() if heard.done() else {}
        return found if found.get("op") == answer else {}

    def give_up(self) -> None:
        """The coordinator has: end the agent, if its host still answers.

        Else it is let be. Behind a cut cable it is well, perhaps, and comes back with the state that it holds; an order to
        end would reach it just then, for what was sent is sent again and again.
        """
        if self._link is not None:
            self._link.tell(op="ping")
            asyncio.get_running_loop().call_later(DEAF_SECONDS, self._link.cut)

    async def leave(self) -> None:
        """Let the agent's workers leave, then end everything here."""
        self._leaves = True
        self._fleet.coordinator.feed(AgentLeaving(self.name))
        try:
            await asyncio.wait_for(self._gone(), 2 * self._fleet.launch.job.launch.stop_timeout.seconds)
        except asyncio.TimeoutError:
            pass
        await self.end()

    async def end(self) -> None:
        """Wait for the agent, which was told to end, then end what is left."""
        if self._task is None:
            return
        if self._link is not None:
            await asyncio.wait([self._task], timeout=END_SECONDS)
        if self._link is not None:
            self._link.tell(op="kill")
            await asyncio.wait([self._task], timeout=DEAF_SECONDS)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def _report(self, task: asyncio.Task) -> None:
        """A mistake of ours must not be silent: the job would wait for a host that nobody looks after."""
        if not task.cancelled() and task.exception() is not None:
            log.error("%s is not looked after any more", self.host.name, exc_info=task.exception())

    async def _gone(self) -> None:
        while self.name in self._fleet.coordinator.agents() and not self._fleet.over:
            await asyncio.sleep(LOOK_SECONDS)

    async def _keep(self, met: Met | None, after: asyncio.Task | None) -> None:
        """Have an agent run there for as long as the job does."""
        loop = asyncio.get_running_loop()
        if after is not None:
            await asyncio.wait([after])
        met = met or await self._meet_again()
        while not self._fleet.over:
            began = loop.time()
            if met is not None:
                await self._serve(met)
                await self._gone()  # if only the connection to the host was lost, its agent may still be there
            if self._fleet.over or self._leaves or not self._fleet.launch.job.elastic.enabled:
                return
            self._pause = FIRST_PAUSE if loop.time() - began > SETTLED_SECONDS else self._pause
            await asyncio.sleep(self._pause)
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
            met = await self._meet_again()

    async def _meet_again(self) -> Met | None:
        found = await self._fleet.meet(self.host)
        if isinstance(found, Met):
            if self._said:
                self._fleet.note("host_back", self.host, "")
            self._said = ""
            return found
        if found.what != self._said:
            self._said = found.what
            self._fleet.note("host_trouble", self.host, found.what, remedy=found.remedy)
        return None

    async def _serve(self, met: Met) -> None:
        """Start the agent and wait for its end, or for that of the connection to the host."""
        self._link = met.link
        try:
            if met.report.get("leftover") and await self._rejoins():
                met.link.tell(op="watch")
            else:
                met.link.tell(op="agent", record=self._fleet.record(self))
            while (message := await met.link.hear())["op"] != "ended":
                if message["op"] == "alive":
                    met.link.tell(op="kill")
                elif message.get("number") is not None:
                    if (heard := self._asked.pop(message["number"], None)) is not None:
                        heard.set_result(message)
                elif message["op"] == "failed":
                    self._fleet.note("host_trouble", self.host, str(message.get("reason")))
                    break
        except Silent:
            pass
        finally:
            self._link = None
            for heard in self._asked.values():
                heard.set_result({})
            self._asked.clear()
            await met.link.close()

    async def _rejoins(self) -> bool:
        """Whether the agent that was found there comes back to the coordinator by itself."""
        for _ in range(round(REJOIN_SECONDS / LOOK_SECONDS)):
            if self.name in self._fleet.coordinator.agents():
                return True
            await asyncio.sleep(LOOK_SECONDS)
        return False
