"""The hosts of a job that runs: each has its agent (:mod:`.member`), and a script of the user's may name others."""

from __future__ import annotations

import asyncio
from typing import Sequence

from hvtrain.control.client import Address
from hvtrain.control.coordinator import Coordinator
from hvtrain.errors import EnvironmentNotReady
from hvtrain.launch import latecomer
from hvtrain.launch.contact import Contact, Met, Party
from hvtrain.launch.discovery import Script
from hvtrain.launch.hosts import HostSlots, change
from hvtrain.launch.joblaunch import JobLaunch
from hvtrain.launch.member import Member
from hvtrain.launch.ssh import Trouble


JUDGE_SECONDS = 20.0
"""How long it may take to hold a host against the others; further ones that come wait so long."""


class Fleet:
    """All hosts of a job."""

    coordinator: Coordinator

    def __init__(self, launch: JobLaunch, contact: Contact, party: Party, script: Script | None):
        self.launch, self.over = launch, False
        self._contact, self._party, self._script = contact, party, script
        self._members: dict[HostSlots, Member] = {}
        self._leaving: dict[str, asyncio.Task] = {}  # by the name of the host
        self._machines: dict[str, str] = {host.name: _machine(met) for host, met in party.met.items()}
        self._tasks: list[asyncio.Task] = []
        self._numbers, self._short = 0, False
        self._judging = asyncio.Lock()  # a host listens for one latecomer at a time

    async def start(self, address: Address, coordinator: Coordinator) -> None:
        """Start the agents of all hosts that were met, and look for others, if there is a script to ask."""
        self._address, self.coordinator = address, coordinator
        for host in [*self._party.met, *(host for host in self._party.troubles if host not in self._party.met)]:
            self._add(host, self._party.met.get(host))
        self._tasks.append(asyncio.create_task(self._until_over()))
        if self._script is not None:
            self._tasks.append(asyncio.create_task(self._poll(self._script)))

    def drop(self, name: str) -> None:
        """The coordinator has given an agent up."""
        for member in self._members.values():
            if member.name == name:
                member.give_up()

    async def end(self) -> None:
        """End all agents with the job."""
        self.over = True
        for task in self._tasks:
            task.cancel()
        if not self._members:
            await self._party.close()
        await asyncio.gather(*(member.end() for member in self._members.values()), *self._leaving.values())

    async def meet(self, host: HostSlots) -> Met | Trouble:
        """A host that comes later, if it can take part."""
        try:
            found = await self._contact.meet(host)
        except EnvironmentNotReady as error:  # there was an ssh when the job began: an upgrade, say; it will be back
            return Trouble(error.message, error.remedy, True)
        if not isinstance(found, Met):
            return found
        try:
            trouble = await self._judge(found)
            if trouble is not None:
                await found.link.close()
        except BaseException:
            found.link.cut()
            raise
        return trouble or found

    def record(self, member: Member) -> dict:
        """What the agent is told: its job."""
        host = member.host
        boot = self.launch.boot(self._address, host.slots)
        return {"boot": boot.to_json(), "name": member.name, "host": host.name.rpartition("@")[2], "slots": host.slots,
                "job_digest": self.launch.digest}

    def note(self, event: str, host: HostSlots, text: str, **more: str) -> None:
        """Something that happened to a host, for people and for events.jsonl."""
        if not self.over:
            self.coordinator.note(event, host=host.name, slots=host.slots, text=text, **more)

    async def _judge(self, met: Met) -> Trouble | None:
        for trouble in self._contact.judge(met):
            return trouble
        owner = self._owner(met)
        if owner is not None:
            return Trouble(f"the same machine as {owner}", "name it once, with all its slots", True)
        self._machines[met.host.name] = _machine(met)  # before anything is waited for: its twin may be met just now
        async with self._judging:
            # Those as well that have been let in just now, and whose agent is not connected yet.
            there = [member for member in self._members.values() if member.answers and member.host != met.host]
            try:
                return await asyncio.wait_for(latecomer.trouble(met, self._address, there), JUDGE_SECONDS)
            except asyncio.TimeoutError:
                return Trouble("it does not answer any more", f"is it on? ping {met.host.name.rpartition('@')[2]}", True)

    def _owner(self, met: Met) -> str | None:
        """By which other name the machine takes part, or has not left yet: a second agent there would end the first."""
        there = {host.name for host in self._members}
        there |= {name for name, leaving in self._leaving.items() if not leaving.done()}
        return next((name for name, machine in self._machines.items()
                     if machine == _machine(met) and name in there and name != met.host.name), None)

    def _add(self, host: HostSlots, met: Met | None) -> None:
        self._members[host] = Member(self, host, self._numbers)
        self._numbers += 1
        self._members[host].begin(met, self._leaving.get(host.name))

    async def _until_over(self) -> None:
        await self.coordinator.wait()
        self.over = True

    # Hosts that come and go ------------------------------------------------------------------------------------
    async def _poll(self, script: Script) -> None:
        while True:
            await asyncio.sleep(self.launch.job.launch.discovery_interval.seconds)
            found = await script.look_again(lambda text: self.coordinator.note("discovery_failed", text=text))
            if found is not None:
                self._follow(found)

    def _follow(self, hosts: Sequence[HostSlots]) -> None:
        least = self.launch.job.elastic.min_workers
        differs = change(self._members, hosts)
        if sum(host.slots for host in hosts) < least:
            if differs.left and not self._short:
                self.coordinator.note("discovery_short", text=f"{self._script.command} names too few slots for "
                                      f"elastic.min_workers ({least}); the hosts stay until it names others")
            self._short = True
            return
        self._short = False
        for host in differs.left:
            self.note("host_left", host, "the discovery script does not name it any more")
            before = self._leaving.get(host.name)
            self._leaving[host.name] = asyncio.create_task(_all_left(self._members.pop(host), before))
        for host in differs.new:
            self.note("host_found", host, "the discovery script names it")
            self._add(host, None)


async def _all_left(member: Member, before: asyncio.Task | None) -> None:
    """A host may be named and not named again while its agent of the first time still leaves."""
    await member.leave()
    if before is not None:
        await before


def _machine(met: Met) -> str:
    return str(met.report.get("machine"))
