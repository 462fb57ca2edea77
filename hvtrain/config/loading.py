"""A job file, the environment and a command's overrides -> a ``Job``, or all that is wrong with them.

    defaults < file < HVTRAIN_A__B < key=value  ->  ${...} filled in  ->  types  ->  combinations
"""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any, Mapping, Sequence

from hvtrain.config import document, explain, interpolation, suggest
from hvtrain.config import overrides as over
from hvtrain.config.checking import ANY_TARGET, check
from hvtrain.config.document import Path
from hvtrain.config.job import Job
from hvtrain.config.origins import Origins, dotted
from hvtrain.config.task import TaskConfig
from hvtrain.errors import ConfigError, Problem

_COMMON_NAMES = ("config", "job")  # the folder tells more than these


def load(
    path: str | os.PathLike[str], overrides: Sequence[str] = (), env: Mapping[str, str] | None = None
) -> Job:
    """Read a job file.

    ``overrides`` are texts ``key=value`` with YAML values. ``env`` is where ``HVTRAIN_A__B`` is looked up, by
    default the environment of this process (``${oc.env:X}`` always reads the latter); one that names no known
    key is a mistake. Raises ConfigError with everything that is wrong, and where.
    """
    file = os.fspath(path)
    return _load(file, _read(file), overrides, env)[0]


def load_script(
    script: str | os.PathLike[str], framework: str, config: str | os.PathLike[str] | None = None,
    overrides: Sequence[str] = (), env: Mapping[str, str] | None = None
) -> tuple[Job, Given]:
    """The job of running a script that trains with ``framework``, with settings from the job file ``config`` if there is
    one; and what of it was given. Else as :func:`load`."""
    file = os.fspath(script) if config is None else os.fspath(config)
    tree, lines, problems = _read(file) if config is not None else ({}, {}, [])
    # A job file may serve both a task of its own and this script.
    tree = {"framework": framework, **tree, "task": {"script": os.fspath(script)}}
    return _load(file, (tree, lines, problems), overrides, env, name=os.fspath(script))


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a job file says, ``${...}`` filled in, without defaults. Raises ConfigError as :func:`load` does."""
    file = os.fspath(path)
    tree, lines, problems = _read(file)
    if "task" not in tree:
        tree = {**tree, "task": {"target": ANY_TARGET}}
    return _load(file, (tree, lines, problems), (), {})[1].all


def read_environment() -> dict[str, Any]:
    """What ``HVTRAIN_A__B`` in this process's environment set. Raises ConfigError."""
    found, problems = over.from_environment(os.environ)
    tree = _override({}, found, Origins(over.ENVIRONMENT, {}), problems)
    if problems:
        raise ConfigError(problems)
    return tree


def read_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """What a command's ``overrides`` set, as a tree. Raises ConfigError."""
    found, problems = over.from_command(overrides)
    tree = _override({}, found, Origins(over.COMMAND_LINE, {}), problems)
    if problems:
        raise ConfigError(problems)
    return tree


@dataclass(frozen=True)
class Given:
    """What a job was told explicitly, ``${...}`` filled in: ``all`` of it, and ``over`` the part that is set over files,
    by the environment and the command line."""

    all: dict[str, Any] = field(default_factory=dict)
    over: dict[str, Any] = field(default_factory=dict)


def _load(file: str, source: tuple[dict[str, Any], dict[Path, int], list[Problem]], overrides: Sequence[str],
          env: Mapping[str, str] | None, name: str = "") -> tuple[Job, Given]:
    """``name`` is what the run is called after, ``file`` if it is empty."""
    tree, lines, problems = source
    origins = Origins(file, lines)
    known_bad: set[Path] = {tuple(p.key.split(".")) for p in problems if p.key}
    set_over: list[over.Override] = []
    for found, more in (over.from_environment(os.environ if env is None else env), over.from_command(overrides)):
        problems += more
        tree = _override(tree, found, origins, problems)
        set_over += found
    # ``elastic:`` with nothing under it, say all of it commented out, is an empty section.
    tree = {
        key: value for key, value in tree.items()
        if value is not None or not suggest.section_at(Job, [key])
    }
    defaults = _defaults(name or file)
    tree, failed = interpolation.resolve(tree, defaults)
    problems += [origins.problem(where, message) for where, message in failed]
    known_bad |= {where for where, _ in failed}
    job, findings = check(_with_own(tree, defaults["run"]["dir"]), known_bad)
    for finding in findings:
        clash = [finding.path, *finding.others]
        at = next((where for where in clash if where in origins), finding.path)
        problems.append(origins.problem(finding.path, finding.message, at))
    if problems or job is None:
        raise ConfigError(_in_order(problems, file))
    return job, Given(tree, _part(tree, [override.path for override in set_over]))


def _part(tree: dict[str, Any], paths: Sequence[Sequence[str]]) -> dict[str, Any]:
    """The part of ``tree`` that ``paths`` name. A list comes as a whole; so does what was filled in."""
    part: dict[str, Any] = {}
    for path in paths:
        source, into = tree, part
        for number, key in enumerate(path):
            key = next((known for known in source if str(known).lower() == key.lower()), key)
            if key not in source:
                break
            if number == len(path) - 1 or not isinstance(source[key], dict):
                into[key] = source[key]
                break
            source, into = source[key], into.setdefault(key, {})
    return part


def _read(file: str) -> tuple[dict[str, Any], dict[Path, int], list[Problem]]:
    """The file's tree, the lines of its keys, and its mistakes. Raises ConfigError if there is no tree."""
    try:
        text = FilePath(file).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError([Problem(f"there is no such file{_similar_file(file)}", file)]) from None
    except OSError as error:
        raise ConfigError([Problem(f"cannot be read: {error.strerror}", file)]) from None
    except UnicodeDecodeError as error:
        raise ConfigError([Problem(f"is not UTF-8 text: {error}", file)]) from None
    parsed = document.read(text)
    problems = [Problem(fault.message, file, fault.line, dotted(fault.path)) for fault in parsed.faults]
    tree = {} if parsed.value is None and not problems else parsed.value
    if not isinstance(tree, dict):
        if tree is not None:
            got = explain.show(tree)
            problems.append(Problem(f"expected sections such as task and train, got {got}", file, 1))
        raise ConfigError(_in_order(problems, file))
    return tree, parsed.lines, problems


def _similar_file(file: str) -> str:
    folder = FilePath(file).parent
    try:
        names = [entry.name for entry in folder.iterdir() if entry.suffix in (".yaml", ".yml")]
    except OSError:
        return f", nor the folder {folder}"
    near = difflib.get_close_matches(FilePath(file).name, names, n=1)
    return f"; did you mean {folder / near[0]}?" if near else "; give the path of a job file (YAML)"


def _override(
    tree: dict[str, Any], found: Sequence[over.Override], origins: Origins, problems: list[Problem]
) -> dict[str, Any]:
    for override in found:
        try:
            tree, where = over.apply(tree, override)
        except LookupError as error:
            key = ".".join(override.path)
            problems.append(Problem(f"{error.args[0]} (in {override.given})", override.source, key=key))
        else:
            origins.override(where, override)
    return tree


def _defaults(file: str) -> dict[str, Any]:
    """What holds where the user says nothing, as plain values."""
    values = Job(task=TaskConfig(target=ANY_TARGET)).model_dump(mode="json", exclude={"task"})
    path = FilePath(file).absolute()
    values["run"]["dir"] = f"runs/{path.parent.name if path.stem in _COMMON_NAMES else path.stem}"
    return values


def _with_own(tree: dict[str, Any], run_dir: str) -> dict[str, Any]:
    """With the two values that no model can know: the run's directory, and room for the missing target."""
    run = tree.get("run", {})
    if isinstance(run, dict):
        run = {"dir": run_dir, **run}
    return {**tree, "task": tree.get("task", {}), "run": run}


def _in_order(problems: Sequence[Problem], file: str) -> list[Problem]:
    """The file's mistakes by line, then those of the environment, then those of the command line."""
    sources = [file, over.ENVIRONMENT, over.COMMAND_LINE]
    return sorted(dict.fromkeys(problems), key=lambda p: (sources.index(p.source), p.line or 0))
