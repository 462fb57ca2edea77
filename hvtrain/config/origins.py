"""Where each value of a job was set: a line of the file, a variable, or the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Iterator, Mapping

from hvtrain.config.document import Path
from hvtrain.config.overrides import COMMAND_LINE, Override
from hvtrain.errors import Problem


@dataclass(frozen=True)
class Origin:
    """``line`` is None outside the file; ``given`` is what the user wrote there, empty for the file."""

    source: str
    line: int | None = None
    given: str = ""


class Origins:
    """Maps the paths of a job file and of its overrides to their origin."""

    def __init__(self, file: str, lines: Mapping[Path, int]):
        self.file = file
        self._known: dict[Path, Origin] = {path: Origin(file, line) for path, line in lines.items()}
        self._known[()] = Origin(file, 1)

    def __contains__(self, path: Path) -> bool:
        return path in self._known

    def override(self, path: Path, override: Override) -> None:
        """``path`` now comes from ``override``, with all that is below it."""
        if not isinstance(override.value, dict):  # a mapping is merged: what it does not name stays
            self._known = {at: origin for at, origin in self._known.items() if at[:len(path)] != path}
        origin = Origin(override.source, None, override.given)
        for length in range(1, len(path)):  # sections that the override brought into being
            self._known.setdefault(path[:length], origin)
        for at in paths(override.value, path):
            self._known[at] = origin

    def problem(self, path: Path, message: str, at: Path | None = None) -> Problem:
        """A problem of the key ``path``, placed where ``at`` (by default the key itself) was set.

        A key that is missing is placed where the section is that should hold it.
        """
        where = path if at is None else at
        while where not in self._known:
            where = where[:-1]
        origin = self._known[where]
        if origin.given:
            how = "in" if origin.source == COMMAND_LINE else "set by"
            message += f" ({how} {origin.given})"
        return Problem(message, origin.source, origin.line, dotted(path))


def paths(value: Any, root: Path) -> Iterator[Path]:
    """``root`` and the paths of everything inside ``value``."""
    yield root
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from paths(inner, (*root, key))


def dotted(path: Path) -> str:
    """``("optim", "groups", 0, "lr")`` -> ``"optim.groups.0.lr"``."""
    return ".".join(map(str, path))
