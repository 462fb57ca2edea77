"""What the installed engine is: ours or a stock Horovod, with which edits, built for which frameworks."""

from __future__ import annotations

import importlib.metadata
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from hvtrain.engine.frameworks import NAMES, Framework, installed_frameworks
from hvtrain.engine.recipe import source_digest

BUILD_COMMAND = "hvtrain engine build"


@dataclass(frozen=True)
class EngineInfo:
    """A reading.

    ``built_for`` are the framework versions it was compiled against, ``present`` those that are installed now,
    ``usable`` the frameworks for which both agree. ``problems`` are whole sentences; ``remedy`` is what to type,
    empty where nothing is wrong.
    """

    installed: bool
    ours: bool
    version: str
    edits: tuple[str, ...]
    edits_current: bool
    built_for: dict[str, str]
    present: dict[str, str]
    variables: dict[str, str]
    usable: tuple[str, ...]
    problems: tuple[str, ...]
    remedy: str

    @property
    def matches(self) -> bool:
        """True if it is ours, with today's edits, and fits every installed framework."""
        return self.installed and not self.problems

    def to_json(self) -> dict:
        """JSON-able form, ``matches`` included."""
        return {**asdict(self), "matches": self.matches}


def engine_info() -> EngineInfo:
    """Read what is installed in this Python. Imports neither Horovod nor a framework."""
    return describe(_installed_version(), installed_record(), installed_frameworks(), source_digest())


def describe(version: str, record: dict | None, present: tuple[Framework, ...], digest: str) -> EngineInfo:
    """The pure part: ``version`` "" means that no Horovod is installed, ``record`` None that it is not ours."""
    here = {framework.name: framework.version for framework in present}
    record_given, record = record is not None, record or {}
    built = dict(record.get("frameworks", {}))
    current = record_given and record.get("edits_digest") == digest
    usable = tuple(name for name in NAMES if name in here and here[name] == built.get(name))
    problems = _problems(version, record_given, current, built, here)
    return EngineInfo(
        installed=bool(version), ours=record_given, version=version, edits=tuple(record.get("edits", ())),
        edits_current=current, built_for=built, present=here, variables=dict(record.get("variables", {})),
        usable=usable, problems=tuple(problems), remedy=_remedy(problems, here))


def _problems(version: str, ours: bool, current: bool, built: dict[str, str], here: dict[str, str]) -> list[str]:
    found = []
    if not here:
        found.append("Neither PyTorch nor TensorFlow is installed.")
    if not version:
        return [*found, "The engine (Horovod) is not installed."]
    if not ours:
        return [*found, f"The installed Horovod {version} is not hvtrain's engine: a dying peer aborts all others."]
    if not current:
        found.append("The installed engine was built by another version of hvtrain, with other edits.")
    for name, have in here.items():
        if name not in built:
            found.append(f"The engine was not built for {name}, which is installed ({have}).")
        elif built[name] != have:
            found.append(f"The engine was built for {name} {built[name]}, but {have} is installed.")
    return found


def _remedy(problems: list[str], here: dict[str, str]) -> str:
    if not problems:
        return ""
    return BUILD_COMMAND if here else f"pip install torch && {BUILD_COMMAND}"


def _installed_version() -> str:
    try:
        return importlib.metadata.version("horovod")
    except importlib.metadata.PackageNotFoundError:
        return ""


def installed_record() -> dict | None:
    """What the installed engine says about itself, None if it is not ours or not there."""
    try:
        distribution = importlib.metadata.distribution("horovod")
        text = Path(str(distribution.locate_file("horovod/hvtrain_engine.json"))).read_text(encoding="utf-8")
        record = json.loads(text)
    except (importlib.metadata.PackageNotFoundError, OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None
