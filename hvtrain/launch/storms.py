"""Random faults of a plan, carried out from the coordinator's process through the agents."""

from __future__ import annotations

import asyncio
import logging
import signal
from pathlib import Path

from hvtrain.chaos import storm
from hvtrain.chaos.plan import Plan
from hvtrain.chaos.registry import RANDOM, Registry
from hvtrain.control.coordinator import Coordinator

log = logging.getLogger(__name__)

_SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}
LOOK_SECONDS = 0.05


async def rage(plan: Plan | None, coordinator: Coordinator, directory: Path) -> None:
    """Strike members of the job at the times that ``plan`` draws, each strike entered in the run's registry."""
    if plan is None:
        return
    registry = Registry(plan, directory)
    while not coordinator.members():
        await asyncio.sleep(LOOK_SECONDS)
    loop = asyncio.get_running_loop()
    began, struck = loop.time(), set()
    for strike in storm.strikes(plan):
        await asyncio.sleep(max(0.0, began + strike.after - loop.time()))
        # Who was killed a moment ago may not have been missed yet.
        members = [member for member in coordinator.members() if member["pid"] not in struck]
        if not members:
            continue  # nobody is there to be struck
        victim = storm.pick(strike.draw, members)
        claim = registry.claim(strike.fault, strike.number, RANDOM, rank=victim["rank"], pid=victim["pid"],
                               step=victim["step"], phase="", round=victim["round"])
        if claim is not None:
            struck.add(victim["pid"])
            await coordinator.signal(victim["worker"], _SIGNALS[strike.kind])
