"""The plan that a drill uses if it is given none."""

from __future__ import annotations

from typing import Any

from hvtrain.chaos.plan import Fault, Plan

DISTANCE = 4
"""Steps between two faults, at least, so that each finds the job recovered from the one before."""

MARGIN = 2
"""The first and the last so many steps are left alone."""


def default_plan(workers: int, steps: int, global_batch: int) -> Plan:
    """Kills in every phase of a step, of rank 0 and others, two at once, a cut and a stop, spread over ``steps``.

    What needs more workers than there are is left out, and so is, from the end, what needs more steps.
    """
    busy = min(workers, global_batch)  # a rank without samples passes no forward
    last, second = busy - 1, min(1, busy - 1)
    faults: list[dict[str, Any]] = [
        {"kind": "kill", "phase": "forward", "rank": last},
        {"kind": "kill", "phase": "backward", "rank": 0},
        {"kind": "kill", "phase": "bucket", "rank": second},
        {"kind": "kill", "phase": "reduced", "rank": last},
        {"kind": "stop", "rank": second},
        {"kind": "kill", "phase": "optimizer", "rank": 0},
    ]
    if busy > 2:
        faults.append({"kind": "kill", "phase": "bucket", "rank": [1, last]})
    if busy > 1:
        faults.append({"kind": "cut", "phase": "backward", "rank": last})
    room = max(1, steps - 2 * MARGIN)
    faults = faults[:max(1, room // DISTANCE)]
    return Plan(name="the drill's own plan", faults=[
        Fault(**fault, step=min(steps, 1 + MARGIN + int((place + 0.5) * room / len(faults))))
        for place, fault in enumerate(faults)])
