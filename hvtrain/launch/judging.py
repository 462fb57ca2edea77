"""Whether hosts can train together: their reports held against each other. Pure."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any, Mapping, Sequence

from hvtrain.control import versions
from hvtrain.launch.hosts import HostSlots
from hvtrain.launch.ssh import Trouble
from hvtrain.report import table

Report = Mapping[str, Any]
NAMED_FILES = 3
"""Of the files that differ, so many are named."""


@dataclass(frozen=True)
class Standard:
    """What the hosts are held against: the launcher's ``code`` and ``config``, and the ``versions`` that all must have."""

    framework: str
    module_dir: str
    run_dir: str
    config_path: str
    code: Mapping[str, str]
    config: str | None
    versions: Mapping[str, str]


def standard_versions(ours: Mapping[str, str], first: Mapping[str, str] | None) -> dict[str, str]:
    """The versions that all hosts must have: this machine's; where it trains nothing itself, hvtrain is this machine's and
    the rest the ``first`` host's."""
    return dict(ours) if first is None else {**first, "hvtrain": ours["hvtrain"], "source": ours["source"]}


def judge(host: HostSlots, report: Report, standard: Standard) -> list[Trouble]:
    """What is wrong with a host for this job."""
    found = list(_versions(host.name, report, standard))
    found += _code(host.name, report, standard)
    if report.get("config") not in (None, standard.config):
        found.append(Trouble(f"another {standard.config_path}", _copy(host.name, standard.config_path)))
    if not report.get("writes_run", True):
        found.append(Trouble(f"the run directory {standard.run_dir} cannot be written there",
                             "choose another: run.dir=PATH"))
    return found


def twins(reports: Mapping[HostSlots, Report]) -> dict[HostSlots, Trouble]:
    """Hosts that are one and the same machine as one before them."""
    first: dict[str, HostSlots] = {}
    found = {}
    for host, report in reports.items():
        other = first.setdefault(str(report.get("machine")), host)
        if other is not host:
            found[host] = Trouble(f"the same machine as {other.name}", "name it once, with all its slots: "
                                  f"{HostSlots(other.name, other.slots + host.slots)}")
    return found


def listed(troubles: Mapping[HostSlots, Sequence[Trouble]], count: int) -> str:
    """The table of all troubles, a line for each; ``count``: of so many hosts."""
    bad = sum(bool(each) for each in troubles.values())
    rows = [("HOST", "PROBLEM", "WHAT TO DO")]
    rows += [(host.name, trouble.what, trouble.remedy) for host, each in troubles.items() for trouble in each]
    return "\n".join([f"{bad} of {count} host{'' if count == 1 else 's'} cannot take part:", *table.lines(rows)])


def _versions(host: str, report: Report, standard: Standard):
    theirs = report.get("versions", {})
    for text in versions.differences(standard.framework, theirs, standard.versions):
        name = text.split()[0]
        python = report.get("python", "python")
        if name == "engine":
            remedy = f"ssh {host} {shlex.quote(f'{python} -m hvtrain.cli.main engine build')}"
        elif name in ("another", "hvtrain"):
            remedy = "install the same hvtrain on all hosts"
        elif name == "python":
            remedy = "use the same Python on all hosts"
        else:
            remedy = f"ssh {host} {shlex.quote(f'{python} -m pip install {name}=={standard.versions.get(name)}')}"
        yield Trouble(text, remedy)


def _code(host: str, report: Report, standard: Standard):
    theirs = report.get("code")
    if theirs is None:
        yield Trouble(f"no directory {standard.module_dir}", "put the job at the same path on all hosts, or share its "
                      f"directory: {_copy(host, standard.module_dir + '/')}")
        return
    wrong = [f"{path} {'differs' if path in theirs else 'is missing'}" for path, digest in standard.code.items()
             if theirs.get(path) != digest]
    if wrong:
        more = f" and {len(wrong) - NAMED_FILES} more" if len(wrong) > NAMED_FILES else ""
        yield Trouble(f"other code: {', '.join(wrong[:NAMED_FILES])}{more}", _copy(host, standard.module_dir + "/"))


def _copy(host: str, path: str) -> str:
    target = f"{host.rpartition('@')[0]}@[{host.rpartition('@')[2]}]".lstrip("@") if ":" in host else host
    return f"rsync -a {shlex.quote(path)} {shlex.quote(f'{target}:{path}')}"
