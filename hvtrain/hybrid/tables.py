"""A plan as text for people, and as plain values for JSON."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any, Sequence

from hvtrain.hybrid.planner import Plan, amount, describe, duration, occupied
from hvtrain.hybrid.prediction import Prediction
from hvtrain.hybrid.speeds import Speeds
from hvtrain.report import table

HEAD = ("", "REPLICAS x STAGES", "MICRO-BATCHES", "RECOMPUTE", "CODEC", "STEP", "SAMPLES/S", "MEMORY", "BUBBLE", "COMM",
        "WAIT")

THREADS = 2
"""Before which column that one stands which tells threads, where devices are threads of the processor."""

LEGEND = """\
MEMORY of the fullest device; BUBBLE: share of the stages' time without work; COMM: time in which gradients travel,
WAIT: the part of it that no computation hides, and the time that a reduction takes at least"""


def text(plan: Plan, *, every: bool = False) -> str:
    """The shapes as a table, the recommended one marked; with ``every`` all that there are, else the best of each kind."""
    rows = plan.predictions if every else selected(plan)
    threads = plan.cluster.cores is not None
    head = (*HEAD[:THREADS], "THREADS", *HEAD[THREADS:]) if threads else HEAD
    lines = table.lines([head, *(_row(found, plan) for found in rows)])
    split = f", layers split as {' + '.join(map(str, plan.best.split))}" if plan.best.shape.stages > 1 else ""
    best = f"* recommended: {describe(plan.best.shape)}{split}, {duration(plan.best.seconds)} a step. {plan.reason}"
    problems = [] if all(found.fits for found in rows) else ["- does not fit the memory of the devices"]
    return "\n".join([*lines, "", best, *problems, f"THREADS of each stage; {LEGEND}" if threads else LEGEND])


def selected(plan: Plan) -> list[Prediction]:
    """For each number of stages, with and without recomputation, the fastest; of the whole model with each number of
    replicas; and the recommended shape with each codec."""
    best: dict[tuple[int, bool, int], Prediction] = {}
    for found in plan.predictions:
        shape = found.shape
        kind = (shape.stages, shape.recompute, shape.replicas if shape.stages == 1 and not shape.recompute else 0)
        if shape.codec == "none" and (kind not in best or _order(found) < _order(best[kind])):
            best[kind] = found
    chosen = list(best.values())
    own = replace(plan.best.shape, codec="")
    chosen += [found for found in plan.predictions if replace(found.shape, codec="") == own and found not in chosen]
    return sorted(chosen, key=lambda found: (found.shape.stages, found.shape.recompute, found.seconds))


def _order(found: Prediction) -> tuple[bool, bool, float]:
    return not found.fits, found.shape.serial, found.seconds


def _row(found: Prediction, plan: Plan) -> Sequence[object]:
    shape = found.shape
    mark = "*" if found is plan.best else "" if found.fits else "-"
    rate = f"{plan.global_batch / found.seconds:,.0f}" if found.seconds else ""
    threads = [found.threads] if plan.cluster.cores is not None else []
    return (mark, f"{shape.replicas} x {shape.stages}", *threads, shape.microbatches,
            "yes" if shape.recompute else "no", shape.codec, duration(found.seconds), rate, amount(max(found.memory)),
            f"{found.bubble:.0%}", duration(found.communication), duration(found.waiting))


def to_json(plan: Plan, speeds: Speeds) -> dict[str, Any]:
    """Everything that was computed with and has come out: seconds, bytes."""
    return {"cluster": asdict(plan.cluster), "global_batch": plan.global_batch,
            "costs": asdict(speeds.largest), "speeds": asdict(speeds),
            "recommended": _values(plan.best), "reason": plan.reason,
            "machines": occupied(plan.cluster, plan.best.shape).nodes,
            "predictions": [_values(found) for found in plan.predictions]}


def _values(found: Prediction) -> dict[str, Any]:
    return {**asdict(found), "fits": found.fits}
