"""A plan file -> a ``Plan``, or all that is wrong with it, each mistake with its line."""

from __future__ import annotations

import os
from pathlib import Path as FilePath
from typing import Any, Iterator

from pydantic import ValidationError

from hvtrain.chaos.phases import IN_STEPS
from hvtrain.chaos.plan import Fault, Plan
from hvtrain.chaos.rules import Conflict, ImpossibleFault
from hvtrain.config import document
from hvtrain.config.document import Path
from hvtrain.config.dumping import to_yaml
from hvtrain.config.explain import explain, show
from hvtrain.config.origins import Origins, dotted
from hvtrain.errors import ConfigError, Problem


class BadPlan(ConfigError):
    """A fault plan has mistakes; ``problems`` holds all of them."""

    def __str__(self) -> str:
        return super().__str__().replace(" in the job:", " in the plan:", 1)


def load(path: str | os.PathLike[str], *, workers: int | None = None, steps: int | None = None) -> Plan:
    """Read a plan file.

    ``workers`` and ``steps`` are the most that the run can have; a fault beyond them could never strike and is a
    mistake. Raises BadPlan with everything that is wrong, and where.
    """
    file = os.fspath(path)
    try:
        text = FilePath(file).read_text(encoding="utf-8-sig")
    except OSError as error:
        message = f"cannot be read: {error.strerror}; hvtrain chaos example prints a plan"
        raise BadPlan([Problem(message, file)]) from None
    except UnicodeDecodeError as error:
        raise BadPlan([Problem(f"is not UTF-8 text: {error}", file)]) from None
    parsed = document.read(text)
    problems = [Problem(fault.message, file, fault.line, dotted(fault.path)) for fault in parsed.faults]
    tree = {} if parsed.value is None else parsed.value
    if not isinstance(tree, dict):
        raise BadPlan([*problems, Problem(f"expected the keys seed and faults, got {show(tree)}", file, 1)])
    origins = Origins(file, parsed.lines)
    plan, findings = check(tree)
    unread = [fault.path for fault in parsed.faults]
    problems += [origins.problem(where, message) for where, message in findings
                 if not any(bad[:len(where)] == where for bad in unread)]  # it is not missing, it could not be read
    if plan is not None:
        problems += [origins.problem(where, message) for where, message in out_of_reach(plan, workers, steps)]
    if problems or plan is None:
        raise BadPlan(sorted(dict.fromkeys(problems), key=lambda problem: problem.line or 0))
    return plan if plan.name else plan.model_copy(update={"name": FilePath(file).name})


def dump(plan: Plan) -> str:
    """The plan as YAML that loads to an equal one, a line per fault."""
    head = [f"name: {_flow(plan.name)}"] if plan.name else []
    faults = [fault.model_dump(mode="json", exclude_defaults=True) for fault in plan.faults]
    return "\n".join([*head, f"seed: {plan.seed}", "faults:", *(f"  - {_flow(fault)}" for fault in faults)]) + "\n"


def check(tree: dict[str, Any]) -> tuple[Plan | None, list[tuple[Path, str]]]:
    """The plan that ``tree`` describes, or None and what is wrong as (path, message)."""
    try:
        return Plan.model_validate(tree), []
    except ValidationError as error:
        items = error.errors()
    findings: list[tuple[Path, str]] = []
    bad: dict[Path, set[Any]] = {}  # the keys of a fault that have a mistake of their own
    for item in items:
        path = item["loc"]
        cause = _impossible(item)
        if cause is not None:
            findings += [((*path, conflict.key), conflict.message) for conflict in cause.conflicts]
            continue
        findings.append((path, explain(item, Plan)))
        if len(path) > 2:
            bad.setdefault(path[:2], set()).add(path[2])
    for path, keys in bad.items():
        for conflict in _conflicts_of_the_rest(tree["faults"][path[1]], keys):
            findings.append(((*path, conflict.key), conflict.message))
    return None, findings


def out_of_reach(plan: Plan, workers: int | None, steps: int | None) -> Iterator[tuple[Path, str]]:
    """Faults that cannot strike in a run of so many workers and steps, as (path, message)."""
    for index, fault in enumerate(plan.faults):
        high = max(fault.ranks or [0])
        if workers is not None and high >= workers:
            yield ("faults", index, "rank"), (
                f"there is no rank {high} among {workers} worker{'s' if workers > 1 else ''}; the ranks are "
                f"{'0' if workers == 1 else f'0 to {workers - 1}'}")
        if steps is not None and fault.step is not None and fault.step > steps and fault.at in IN_STEPS:
            yield ("faults", index, "step"), f"the run has {steps} steps and never comes to step {fault.step}"


def _impossible(item: Any) -> ImpossibleFault | None:
    cause = item.get("ctx", {}).get("error")
    return cause if isinstance(cause, ImpossibleFault) else None


def _conflicts_of_the_rest(fault: dict[str, Any], bad: set[Any]) -> list[Conflict]:
    """What contradicts itself in a fault, leaving out what has to do with its ``bad`` keys."""
    try:
        Fault.model_validate({key: value for key, value in fault.items() if key not in bad})
    except ValidationError as error:
        causes = [cause for item in error.errors() if (cause := _impossible(item)) is not None]
        return [conflict for cause in causes for conflict in cause.conflicts
                if not bad & {conflict.key, *conflict.others}]
    return []


def _flow(value: Any) -> str:
    return to_yaml(value, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...")
