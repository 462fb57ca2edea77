"""What is set over the file: ``HVTRAIN_OPTIM__LR=1e-3`` in the environment, ``optim.lr=1e-3`` in commands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Iterable, Mapping, Sequence

from hvtrain.config import document
from hvtrain.config.document import Path
from hvtrain.errors import Problem

PREFIX = "HVTRAIN_"
ENVIRONMENT = "environment"
COMMAND_LINE = "command line"


@dataclass(frozen=True)
class Override:
    """One value set from outside; ``given`` is what the user wrote or named, for messages."""

    path: tuple[str, ...]
    value: Any
    source: str
    given: str


def from_environment(env: Mapping[str, str]) -> tuple[list[Override], list[Problem]]:
    """``HVTRAIN_A__B`` sets ``a.b``. Variables without a double underscore are not meant for the job."""
    found = [
        (name, tuple(name[len(PREFIX):].lower().split("__")), text)
        for name, text in sorted(env.items())
        if name.startswith(PREFIX) and "__" in name[len(PREFIX):]
    ]
    return _parse(((path, text, name) for name, path, text in found), ENVIRONMENT)


def from_command(items: Sequence[str]) -> tuple[list[Override], list[Problem]]:
    """``a.b=c`` sets ``a.b``; ``c`` is YAML."""
    problems = [
        Problem(f"expected key=value such as optim.lr=1e-3, got '{item}'", COMMAND_LINE)
        for item in items if "=" not in item
    ]
    pairs = [item.partition("=") for item in items if "=" in item]
    overrides, more = _parse(
        ((tuple(key.strip().split(".")), text, f"{key}={text}") for key, _, text in pairs), COMMAND_LINE)
    return overrides, problems + more


def _parse(
    items: Iterable[tuple[tuple[str, ...], str, str]], source: str
) -> tuple[list[Override], list[Problem]]:
    overrides, problems = [], []
    for path, text, given in items:
        key = ".".join(path)
        if not all(path):
            text = f"'{given}' names no key; an empty part stands between separators"
            problems.append(Problem(text, source))
            continue
        parsed = document.read(text)
        if parsed.faults:
            problems += [Problem(f"{fault.message} (in {given})", source, key=key) for fault in parsed.faults]
        else:
            overrides.append(Override(path, parsed.value, source, given))
    return overrides, problems


def apply(tree: dict[str, Any], override: Override) -> tuple[dict[str, Any], Path]:
    """``tree`` with the override in it, and the path it went to; ``tree`` itself stays as it is.

    Mappings are merged, everything else is replaced. A number in the path picks an element of a list.
    Raises LookupError, saying why, when there is no such element.
    """
    where: list[str | int] = []
    result = _set(tree, override.path, override.value, override.source == ENVIRONMENT, where)
    return result, tuple(where)


def _set(node: Any, path: Sequence[str], value: Any, any_case: bool, where: list[str | int]) -> Any:
    if not path:
        return _merge(node, value)
    part, rest = path[0], path[1:]
    if isinstance(node, list):
        if not part.isdigit() or int(part) >= len(node):
            here = ".".join(map(str, where))
            raise LookupError(f"{here} is a list of {len(node)}, counted from 0; it has no element {part}")
        where.append(int(part))
        changed = _set(node[int(part)], rest, value, any_case, where)
        return [*node[:int(part)], changed, *node[int(part) + 1:]]
    inside = node if isinstance(node, dict) else {}
    if any_case:  # variables are upper case by custom; the keys of ``args`` need not be lower case
        part = next((key for key in inside if key.lower() == part), part)
    where.append(part)
    return {**inside, part: _set(inside.get(part), rest, value, any_case, where)}


def _merge(old: Any, new: Any) -> Any:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return {**old, **{key: _merge(old.get(key), value) for key, value in new.items()}}
