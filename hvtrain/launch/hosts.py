"""Which hosts a job runs on, and how many workers each may have: from -H, from a file, or from a script's lines. Pure.

::

    -H h1:4,h2:4,[fd00::2]:4           a hostfile                 a discovery script's output
    h1,h1,user@h2:4                    h1 slots=4  # a comment    h1:4
    (no number: one slot)              h2:4                       h2:2

What names a host several times (a scheduler's file with a line per slot) gives it the sum.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Iterable, Sequence

from hvtrain.errors import UsageError

MOST_SLOTS = 4096
"""More workers on a host are a slip of the pen."""

_NAME = re.compile(r"(?:[\w.+-]+@)?[\w][\w.-]*|(?:[\w.+-]+@)?[0-9A-Fa-f:.]+(?:%[\w.-]+)?", re.ASCII)
_ITEM = re.compile(r"(?P<user>[^\[\]@\s]+@)?(?:\[(?P<six>[^\[\]]*)\]|(?P<name>[^\s\[\]:]*))(?::(?P<slots>[^:]*))?")
_EXAMPLE = "for instance h1:4, or [fd00::2]:4 for an IPv6 address"


@dataclass(frozen=True)
class HostSlots:
    """A host, by the name or address that ssh knows it by (perhaps with ``user@``), and its slots."""

    name: str
    slots: int

    def __str__(self) -> str:
        user, at, host = self.name.rpartition("@")
        return f"{user}{at}[{host}]:{self.slots}" if ":" in host else f"{self.name}:{self.slots}"


@dataclass(frozen=True)
class Change:
    """What became of a set of hosts. One with another number of slots has left and is new."""

    left: tuple[HostSlots, ...]
    new: tuple[HostSlots, ...]


def of_list(text: str | Sequence[str]) -> tuple[HostSlots, ...]:
    """The hosts of ``-H``; raises UsageError."""
    items = text.split(",") if isinstance(text, str) else list(text)
    found = [_item(item.strip(), f"-H {','.join(items)}") for item in items]
    return _summed(_with_slots(host, f"-H: {host}") for host in found)


def of_file(text: str, source: str) -> tuple[HostSlots, ...]:
    """The hosts of a hostfile with this content; ``source`` names it. Raises UsageError."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.partition("#")[0].strip()
        if line:
            found.append(_with_slots(_line(line, f"{source}:{number}"), f"{source}:{number}"))
    if not found:
        raise UsageError(f"{source} names no host. Expected a line for each, for instance: h1 slots=4")
    return _summed(found)


def of_script(text: str, source: str) -> tuple[HostSlots, ...]:
    """The hosts that a discovery script has written, perhaps none; one with 0 slots is not there. Raises UsageError."""
    lines = [(number, line.partition("#")[0].strip()) for number, line in enumerate(text.splitlines(), 1)]
    found = [_line(line, f"{source}, line {number}") for number, line in lines if line]
    return _summed(host for host in found if host.slots)


def change(before: Iterable[HostSlots], now: Iterable[HostSlots]) -> Change:
    """What has changed between two looks."""
    before, now = list(before), list(now)
    return Change(tuple(host for host in before if host not in now), tuple(host for host in now if host not in before))


def _line(line: str, where: str) -> HostSlots:
    """``h1 slots=4``, as Open MPI and Horovod write it; other words of Open MPI's (max_slots) change nothing here."""
    first, *words = line.split()
    host = _item(first, where)
    for word in words:
        key, _, value = word.partition("=")
        if key == "slots":
            host = HostSlots(host.name, _number(value, where))
        elif key not in ("max_slots", "max-slots"):
            raise UsageError(f"{where}: expected a host and slots=N, got {line!r}")
    return host


def _item(text: str, where: str) -> HostSlots:
    match = _ITEM.fullmatch(text)
    name = (match["user"] or "") + (match["name"] or match["six"] or "") if match else ""
    if match is None and text.count(":") > 1 and _NAME.fullmatch(text):
        raise UsageError(f"{where}: an IPv6 address stands in brackets, so that its slots can be told from it: "
                         f"[{text}]:4")
    if match is None or not _NAME.fullmatch(name):
        raise UsageError(f"{where}: expected a host and its slots, {_EXAMPLE}; got {text!r}")
    return HostSlots(name, 1 if match["slots"] is None else _number(match["slots"], where))


def _number(text: str, where: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) > MOST_SLOTS:
        raise UsageError(f"{where}: expected a number of slots up to {MOST_SLOTS}, {_EXAMPLE}; got {text!r}")
    return int(text)


def _with_slots(host: HostSlots, where: str) -> HostSlots:
    if not host.slots:
        raise UsageError(f"{where}: no worker can run on a host without slots; leave {host.name} out, or give it some: "
                         f"{HostSlots(host.name, 1)}")
    return host


def _summed(found: Iterable[HostSlots]) -> tuple[HostSlots, ...]:
    """Each host once, in the order of their first mention."""
    slots: dict[str, int] = {}
    for host in found:
        slots[host.name] = slots.get(host.name, 0) + host.slots
    return tuple(HostSlots(name, count) for name, count in slots.items())
