"""Whether a host that comes while the job runs, and the hosts of the job, reach each other: tried out, by connecting.

::

    latecomer --> the coordinator           by which of its addresses?
    the others --> latecomer                at that address; and each by which of its own do they reach the coordinator?
    latecomer --> the others                at those
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol, Sequence

from hvtrain.control.client import Address
from hvtrain.launch import judging
from hvtrain.launch.contact import Met, ask
from hvtrain.launch.hosts import HostSlots
from hvtrain.launch.probing import NEIGHBOURS, Target
from hvtrain.launch.ssh import Trouble


class Resident(Protocol):
    """A host of the running job."""

    host: HostSlots

    async def ask(self, answer: str, **message: Any) -> dict[str, Any]:
        """What its process there answers; nothing, if it does not."""


async def trouble(met: Met, coordinator: Address, residents: Sequence[Resident]) -> Trouble | None:
    """What is in the way between a host and the job that it is to join; None: nothing.

    Args:
        residents: hosts of the job; the first :data:`~hvtrain.launch.probing.NEIGHBOURS` of them are tried.
    """
    centre = Target(coordinator.host, coordinator.port)
    own = _first(await ask(met, "reached", op="reach", targets=[centre.packed()]))
    if own is None:
        return Trouble(f"it does not reach the coordinator at {centre.address} port {centre.port}",
                       "let it connect to all TCP ports here", True)
    door = await ask(met, "listening", op="listen", address=own)
    if not door.get("targets"):
        return judging.hidden(own)
    targets = [centre.packed(), *door["targets"]]
    near = list(residents[:NEIGHBOURS])
    answers = await asyncio.gather(*(each.ask("reached", op="reach", targets=targets) for each in near))
    ways = {each: answer["by"] for each, answer in zip(near, answers) if len(answer.get("by") or []) == len(targets)}
    if any(way[0] and not all(way[1:]) for way in ways.values()):
        return judging.hidden(own)
    return await _tries(met, {each: way[0] for each, way in ways.items() if way[0]})


async def _tries(met: Met, addresses: dict[Resident, str]) -> Trouble | None:
    """The latecomer connects to those at their ``addresses``."""
    near = list(addresses)
    answers = await asyncio.gather(*(each.ask("listening", op="listen", address=addresses[each]) for each in near))
    doors = {each: answer["targets"][0] for each, answer in zip(near, answers) if answer.get("targets")}
    try:
        found = (await ask(met, "reached", op="reach", targets=list(doors.values()))).get("by") or []
    finally:
        await asyncio.gather(*(each.ask("listening", op="listen", address="") for each in doors))
    missed = [f"{each.host.name} ({addresses[each]})" for each, way in zip(doors, found) if not way]
    return judging.misses(missed) if missed else None


def _first(answer: dict[str, Any]) -> str | None:
    return (answer.get("by") or [None])[0]
