"""A tree of plain values -> a ``Job`` and all findings at once.

Types are checked first. The rules over several keys need a whole job, so when types are wrong the bad values
are left out, and the rules run on what remains, except those that involve a value which was left out:

    tree --types--> Job                          --rules--> findings
              \\--> findings, bad paths --prune--> Job --rules--> findings not about bad paths
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Iterable

from pydantic import ValidationError

from hvtrain.config.document import Path
from hvtrain.config.explain import explain
from hvtrain.config.job import ImpossibleJob, Job
from hvtrain.config.origins import dotted
from hvtrain.config.rules import MISSING

TARGET: Path = ("task", "target")
ANY_TARGET = "job:task"  # stands in for a missing target, the only key that is needed


@dataclass(frozen=True)
class Finding:
    """Something wrong with the key ``path``; ``others`` are the keys that it clashes with."""

    path: Path
    message: str
    others: tuple[Path, ...] = ()


def check(tree: dict[str, Any], known_bad: Iterable[Path] = ()) -> tuple[Job | None, list[Finding]]:
    """The job, or None and what is wrong.

    ``known_bad`` are paths already reported, and left out of ``tree``.
    """
    bad = set(known_bad)
    tree, findings = _with_target(tree, bad)
    reporting = True
    while True:
        try:
            job = Job.model_validate(tree)
            return (None, findings) if findings else (job, [])
        except ValidationError as error:
            impossible = _impossible(error)
            if impossible is not None:
                return None, findings + _clashes(impossible, bad)
            wrong = [(item["loc"], item) for item in error.errors()]
        for path, item in wrong:
            if reporting and not (item["type"] == "missing" and any(_within(path, gone) for gone in bad)):
                findings.append(Finding(path, explain(item, Job)))
        reporting = False  # what comes up now comes of leaving things out
        for path, _ in wrong:
            tree, removed = _prune(tree, path)
            bad.add(removed)


def _with_target(tree: dict[str, Any], bad: set[Path]) -> tuple[dict[str, Any], list[Finding]]:
    """``tree`` with a stand-in for a missing target, so that all else can be checked as well; and that it is missing."""
    task = tree.get("task", {})
    if not isinstance(task, dict) or "target" in task or "script" in task:
        return tree, []
    missing = [] if any(_within(TARGET, gone) for gone in bad) else [Finding(TARGET, MISSING)]
    return {**tree, "task": {**task, "target": ANY_TARGET}}, missing


def _impossible(error: ValidationError) -> ImpossibleJob | None:
    causes = (item.get("ctx", {}).get("error") for item in error.errors())
    return next((cause for cause in causes if isinstance(cause, ImpossibleJob)), None)


def _clashes(impossible: ImpossibleJob, bad: set[Path]) -> list[Finding]:
    gone = {dotted(path) for path in bad}
    result = []
    for conflict in impossible.conflicts:
        keys = (conflict.key, *conflict.others)
        if not any(key == name or key.startswith(f"{name}.") for key in keys for name in gone):
            result.append(Finding(_path(conflict.key), conflict.message, tuple(map(_path, conflict.others))))
    return result


def _path(key: str) -> Path:
    return tuple(int(part) if part.isdigit() else part for part in key.split("."))


def _within(path: Path, outer: Path) -> bool:
    return path[:len(outer)] == outer


def _prune(tree: dict[str, Any], path: Path) -> tuple[dict[str, Any], Path]:
    """``tree`` without ``path``, and what was left out: its section or list, if that is what cannot stay."""
    if path in (TARGET, TARGET[:1]):
        task = tree.get("task")
        return {**tree, "task": {**(task if isinstance(task, dict) else {}), "target": ANY_TARGET}}, path
    while not _removable(tree, path):
        path = path[:-1]
    return _removed(tree, path), path


def _removable(node: Any, path: Path) -> bool:
    """True for a key that is there; an element of a list cannot go, others would change their place."""
    for part in path[:-1]:
        if isinstance(node, dict):
            node = node.get(part)
        elif isinstance(node, list) and isinstance(part, int) and part < len(node):
            node = node[part]
        else:
            return False
    return isinstance(node, dict) and path[-1] in node


def _removed(node: Any, path: Path) -> Any:
    part, rest = path[0], path[1:]
    if isinstance(node, list):
        return [_removed(value, rest) if i == part else value for i, value in enumerate(node)]
    if not rest:
        return {key: value for key, value in node.items() if key != part}
    return {**node, part: _removed(node[part], rest)}
