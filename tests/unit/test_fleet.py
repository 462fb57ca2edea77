"""The hosts of a job that runs, with fakes for them: machines of several names, hosts that come and go, firewalls."""

from __future__ import annotations

import asyncio
import errno
from types import SimpleNamespace

import pytest

from hvtrain.config.units import Duration
from hvtrain.control.client import Address
from hvtrain.errors import EnvironmentNotReady
from hvtrain.launch import contact as contacts
from hvtrain.launch import fleet as module
from hvtrain.launch.contact import Contact, Met, Network, Party
from hvtrain.launch.fleet import Fleet
from hvtrain.launch.hosts import HostSlots, of_list
from hvtrain.launch.probing import Target
from hvtrain.launch.ssh import Trouble

H1, H2, H3, H4 = of_list("h1:2,h2:2,h3:2,h4:2")
MACHINES = {"h1": "m1", "h1.domain": "m1", "h2": "m2"}
LAUNCH = SimpleNamespace(job=SimpleNamespace(
    elastic=SimpleNamespace(min_workers=1), run=SimpleNamespace(dir="/run"), launch=SimpleNamespace(
        ssh_port=None, ssh_identity_file=None, connect_timeout=Duration(10.0), discovery_interval=Duration(600.0))))


class Link:
    """The way to a host with an ``address``; it does not reach the ``blocked`` ones, and says nothing if ``silent``."""

    def __init__(self, address: str = "", blocked: tuple[str, ...] = (), silent: bool = False):
        self.address, self.blocked, self.silent, self.open = address, blocked, silent, True

    async def ask(self, answer: str, seconds: float, **message):
        if message["op"] == "listen":
            if self.silent:
                raise contacts.Silent(None)
            return {"targets": [[message["address"], 5, "n"]]}
        return {"by": [None if target[0] in self.blocked else self.address for target in message["targets"]]}

    async def close(self) -> None:
        self.open = False

    def cut(self) -> None:
        self.open = False


class FakeContact:
    """Meets everybody."""

    def __init__(self) -> None:
        self.links: list[Link] = []

    async def meet(self, host: HostSlots) -> Met:
        self.links.append(Link())
        return Met(host, self.links[-1], {"machine": MACHINES[host.name]})

    judge = staticmethod(lambda met: [])


class FakeMember:
    """Its agent leaves when that is allowed."""

    made: list["FakeMember"] = []
    answers = False

    def __init__(self, fleet: Fleet, host: HostSlots, number: int):
        self.host, self.name, self.may_leave, self.after = host, f"{number}@{host.name}", asyncio.Event(), None
        self.made.append(self)

    def begin(self, met: Met | None, after: asyncio.Task | None = None) -> None:
        self.after = after

    async def leave(self) -> None:
        await self.may_leave.wait()

    async def end(self) -> None:
        self.may_leave.set()


@pytest.fixture
def reached(monkeypatch):
    """Hosts hear whether they reach the coordinator as soon as this event is set."""
    event = asyncio.Event()
    event.set()

    async def trouble(met: Met, coordinator: Address, residents: list) -> None:
        await event.wait()

    monkeypatch.setattr(FakeMember, "made", [])
    monkeypatch.setattr(module, "Member", FakeMember)
    monkeypatch.setattr(module.latecomer, "trouble", trouble)
    return event


def play(scenario, *met: HostSlots) -> None:
    """Run a ``scenario`` with a fleet that has ``met`` these hosts."""
    async def whole() -> None:
        async def wait() -> None:
            await asyncio.Event().wait()

        contact = FakeContact()
        party = Party({host: await contact.meet(host) for host in met})
        fleet = Fleet(LAUNCH, contact, party, None)
        await fleet.start(Address("10.0.0.1", 1, ""), SimpleNamespace(wait=wait, agents=tuple, note=lambda *args, **more: None))
        await scenario(fleet, contact)
        for member in FakeMember.made:  # those that leave as well
            member.may_leave.set()
        await fleet.end()

    asyncio.run(asyncio.wait_for(whole(), 20.0))


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_a_machine_takes_part_by_one_name_and_by_another_once_it_has_left(reached):
    async def scenario(fleet: Fleet, contact: FakeContact) -> None:
        other = HostSlots("h1.domain", 2)
        fleet._follow([H1, other])
        found = await fleet.meet(other)
        assert found == Trouble("the same machine as h1", "name it once, with all its slots", True)
        assert not contact.links[-1].open
        assert isinstance(await fleet.meet(HostSlots("h2", 1)), Met)
        assert isinstance(await fleet.meet(HostSlots("h1", 4)), Met), "by its own name it may come again"
        fleet._follow([other])
        await settle()
        assert isinstance(await fleet.meet(other), Trouble), "its agent still leaves"
        FakeMember.made[0].may_leave.set()
        await settle()
        assert isinstance(await fleet.meet(other), Met)
        fleet._follow([other, H1])
        assert (await fleet.meet(H1)).what == "the same machine as h1.domain"
    play(scenario, H1)


def test_of_two_names_that_are_met_at_once_one_takes_part(reached):
    async def scenario(fleet: Fleet, contact: FakeContact) -> None:
        hosts = of_list("h1:1,h1.domain:1")
        fleet._follow(hosts)
        reached.clear()
        meeting = [asyncio.create_task(fleet.meet(host)) for host in hosts]
        await settle()
        reached.set()
        assert [type(found) for found in await asyncio.gather(*meeting)] == [Met, Trouble]
    play(scenario)


def test_a_host_that_leaves_again_before_it_has_left_is_waited_for(reached):
    async def scenario(fleet: Fleet, contact: FakeContact) -> None:
        for slots in (2, 4, 2):
            fleet._follow([HostSlots("h1", slots)])
            await settle()
        first, second, third = FakeMember.made
        assert first.after is None and not second.after.done()
        second.may_leave.set()
        await settle()
        assert not third.after.done(), "the first agent still saves; whoever begins now would kill it"
        first.may_leave.set()
        await settle()
        assert third.after.done()
    play(scenario, H1)


def test_who_stops_waiting_for_a_host_leaves_no_ssh_behind(reached):
    async def scenario(fleet: Fleet, contact: FakeContact) -> None:
        reached.clear()
        meeting = asyncio.create_task(fleet.meet(H2))
        await settle()
        assert contact.links[-1].open
        meeting.cancel()
        await asyncio.wait([meeting])
        assert meeting.cancelled() and not contact.links[-1].open
    play(scenario)


def test_no_room_for_another_ssh_passes(monkeypatch):
    async def scenario() -> None:
        async def elsewhere(name: str) -> bool:
            return False

        async def fail(link) -> None:
            raise OSError(errno.EMFILE, "Too many open files")

        monkeypatch.setattr(contacts, "_is_here", elsewhere)
        monkeypatch.setattr(contacts.HostLink, "open", fail)
        found = await Contact(LAUNCH, "token", lambda host, line: None).meet(H2)
        assert found == Trouble("ssh cannot be started: Too many open files", "", True)
    monkeypatch.setattr(Contact, "_hello", lambda contact: {})
    asyncio.run(scenario())


def test_hosts_that_come_together_are_held_against_each_other(reached, monkeypatch):
    """Each was held against those alone whose agents were connected: both came in, and no round could be formed."""
    async def scenario(fleet: Fleet, contact: FakeContact) -> None:
        asked = []

        async def trouble(met: Met, coordinator: Address, residents: list) -> None:
            asked.append((met.host, [member.host for member in residents]))

        monkeypatch.setattr(module.latecomer, "trouble", trouble)
        fleet._follow([H1, H2])
        first, second = FakeMember.made
        await fleet.meet(H1)
        first.answers = True  # it has been let in; its agent starts
        await fleet.meet(H2)
        assert asked == [(H1, []), (H2, [H1])]
    play(scenario)


def test_an_ssh_that_is_missing_for_a_moment_does_not_end_the_looking_after_a_host(reached):
    """It is replaced while the system is upgraded; the host was never tried again after that."""
    async def scenario(fleet: Fleet, contact: FakeContact) -> None:
        async def fail(host: HostSlots) -> Met:
            raise EnvironmentNotReady("there is no ssh on this machine.", "apt install openssh-client")

        contact.meet = fail
        assert await fleet.meet(H2) == Trouble("there is no ssh on this machine.", "apt install openssh-client", True)
    play(scenario, H1)


# The network ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("links, guilty", [
    ({}, {}),
    ({H3: {"blocked": ("10.0.0.1", "10.1.0.1")}}, {"h3": "it reaches none of this machine's addresses"}),
    ({H1: {"blocked": ("10.0.0.3",)}, H2: {"blocked": ("10.0.0.3",)}, H4: {"blocked": ("10.0.0.3",)}},
     {"h3": "the others do not reach it"}),
    ({H3: {"blocked": ("10.0.0.2", "10.0.0.4")}}, {"h3": "it does not reach h4 (10.0.0.4), h2 (10.0.0.2)"}),
    ({H3: {"silent": True, "blocked": ("10.0.0.2",)}}, {"h3": "it does not answer any more"}),
])
def test_one_host_behind_a_firewall_is_in_trouble_alone(monkeypatch, links, guilty):
    async def listen(listener, addresses):
        return [Target(address, 1, "n") for address in addresses]

    monkeypatch.setattr(contacts.probing.Listener, "open", listen)
    monkeypatch.setattr(contacts.network, "addresses", lambda: {"eth0": ["10.0.0.1"], "ib0": ["10.1.0.1"]})
    party = Party({host: Met(host, Link(f"10.0.0.{host.name[1]}", **links.get(host, {})), {}, here=host is H1)
                   for host in (H1, H2, H3, H4)})
    found = asyncio.run(contacts.find_network(party, None))
    assert found == Network("eth0", "10.0.0.1"), "the others have it in common"
    troubles = {host.name: [trouble.what for trouble in each] for host, each in party.troubles.items() if each}
    assert troubles.keys() == guilty.keys()
    for name, what in guilty.items():
        assert len(troubles[name]) == 1 and troubles[name][0].startswith(what)
