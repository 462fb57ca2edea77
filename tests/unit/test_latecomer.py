"""A host that joins a running job, with fakes for the hosts: whom it does not reach, and who does not reach it."""

from __future__ import annotations

import asyncio

import pytest

from hvtrain.control.client import Address
from hvtrain.launch import latecomer
from hvtrain.launch.contact import Met
from hvtrain.launch.hosts import HostSlots
from hvtrain.launch.hostlink import Silent

CENTRE = Address("10.0.0.1", 1, "")


class Place:
    """A host with an address. It does not reach the ``blocked`` ones, and says nothing if ``silent``."""

    def __init__(self, number: int, blocked: tuple[str, ...] = (), silent: bool = False):
        self.host, self.address = HostSlots(f"h{number}", 1), f"10.0.0.{number}"
        self._blocked, self._silent, self.doors = blocked, silent, []

    async def ask(self, answer: str, **message) -> dict:
        if self._silent:
            return {}
        if message["op"] == "listen":
            self.doors = [[message["address"], 5, "n"]] if message["address"] else []
            return {"targets": self.doors}
        return {"by": [None if target[0] in self._blocked else self.address for target in message["targets"]]}


class Link:
    """The way to a place that is met."""

    def __init__(self, place: Place):
        self._place = place

    async def ask(self, answer: str, seconds: float, **message) -> dict:
        found = await self._place.ask(answer, **message)
        if not found:
            raise Silent(None)
        return found


def trouble(late: Place, *residents: Place) -> str:
    found = asyncio.run(latecomer.trouble(Met(late.host, Link(late), {}), CENTRE, residents))
    assert not any(place.doors for place in residents), "nobody goes on listening"
    return found.what if found is not None else ""


@pytest.mark.parametrize("late, residents, what", [
    (Place(9), (), ""),
    (Place(9), (Place(1), Place(2), Place(3)), ""),
    (Place(9, blocked=("10.0.0.1",)), (Place(2),), "it does not reach the coordinator at 10.0.0.1 port 1"),
    (Place(9, silent=True), (Place(2),), "it does not reach the coordinator at 10.0.0.1 port 1"),
    (Place(9), (Place(1), Place(2, blocked=("10.0.0.9",))), "the others do not reach it at 10.0.0.9"),
    (Place(9, blocked=("10.0.0.2",)), (Place(1), Place(2), Place(3)), "it does not reach h2 (10.0.0.2)"),
    (Place(9), (Place(1), Place(2, silent=True)), ""),
    (Place(9), (Place(2, blocked=("10.0.0.1", "10.0.0.9")), Place(3)), ""),
], ids=["the first", "all is well", "not the coordinator", "says nothing", "hidden from one", "does not reach one",
        "one says nothing", "one that is cut off is not the latecomer's trouble"])
def test_what_is_in_the_way(late: Place, residents: tuple[Place, ...], what: str) -> None:
    assert trouble(late, *residents) == what


def test_of_many_hosts_some_are_tried() -> None:
    others = [Place(number) for number in range(10, 30)]
    assert trouble(Place(9, blocked=tuple(place.address for place in others[latecomer.NEIGHBOURS:])), *others) == ""
