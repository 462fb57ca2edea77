"""A job out of layers of settings, for scripts: defaults < the command's file < the script < the command line."""

from __future__ import annotations

from typing import Any, Mapping, Sequence

from hvtrain.config.checking import check
from hvtrain.config.job import Job
from hvtrain.config.origins import dotted
from hvtrain.errors import ConfigError, Problem

Tree = Mapping[str, Any]


def merged(*layers: Tree) -> dict[str, Any]:
    """All ``layers`` in one tree: later ones win, mappings are merged.

    ``train.epochs`` and ``train.steps`` exclude each other, so a layer that has one of them takes the other one away.
    """
    result: dict[str, Any] = {}
    for layer in layers:
        length = {key for key in ("epochs", "steps") if _section(layer, "train").get(key) is not None}
        if len(length) == 1:
            result = {**result, "train": {key: value for key, value in _section(result, "train").items()
                                          if key not in ("epochs", "steps")}}
        result = _over(result, layer)
    return result


def settle(layers: Sequence[Tree], fixed: Tree, source: str) -> Job:
    """The job that ``layers`` say, with ``fixed`` over all of them.

    Raises ConfigError with all mistakes; they are told to be in ``source``.
    """
    job, findings = check(merged(*layers, fixed))
    if job is None:
        raise ConfigError([Problem(finding.message, source, key=dotted(finding.path)) for finding in findings])
    return job


def explicit(job: Job) -> dict[str, Any]:
    """What of ``job`` was given, not taken from defaults."""
    tree = job.model_dump(mode="json", exclude_unset=True)
    tree.pop("task", None)
    return tree


def _section(tree: Tree, name: str) -> Mapping[str, Any]:
    found = tree.get(name)
    return found if isinstance(found, Mapping) else {}


def _over(old: Any, new: Any) -> Any:
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return dict(new) if isinstance(new, Mapping) else new
    return {**old, **{key: _over(old.get(key), value) for key, value in new.items()}}
