"""Whether hosts can train together: their reports, and whom they reach, held against each other. Pure."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any, Mapping, Sequence

from hvtrain.control import versions
from hvtrain.launch import ssh
from hvtrain.launch.hosts import HostSlots
from hvtrain.launch.ssh import Settings, Trouble
from hvtrain.report import table

Report = Mapping[str, Any]
NAMED_FILES = 3
"""Of the files that differ, so many are named."""

NAMED_HOSTS = 3
"""Of the hosts that one does not reach, so many are named."""

APART_REMEDY = "let the hosts connect to all TCP ports of each other, or name the network: launch.interface=NAME"


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


def judge(host: HostSlots, report: Report, standard: Standard, way: Settings = Settings()) -> list[Trouble]:
    """What is wrong with a host for this job; ``way``: how a person gets there who is to mend it."""
    found = list(_versions(host.name, report, standard, way))
    found += _code(host.name, report, standard, way)
    if report.get("config") not in (None, standard.config):
        found.append(Trouble(f"another {standard.config_path}", _copy(host.name, standard.config_path, way)))
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


def common(ways: Mapping[HostSlots, Sequence[Any]],
           addresses: Sequence[tuple[str, str]]) -> tuple[int | None, dict[HostSlots, Trouble]]:
    """Which of this machine's ``addresses`` all hosts reach, and who is in the way of that.

    Args:
        ways: of each host, for each of the addresses, whether it reaches it. Who reaches none is in trouble alone.
        addresses: and the interface before each.
    """
    tried = ", ".join(f"{address} ({interface})" for interface, address in addresses) or "none"
    well = [way for way in ways.values() if any(way)]
    chosen = next((number for number in range(len(addresses)) if all(way[number] for way in well)), None)
    found = {}
    for host, way in ways.items():
        reached = [address for (_, address), there in zip(addresses, way) if there]
        if not reached or chosen is None:
            found[host] = Trouble(
                f"it reaches only {', '.join(reached)} of this machine's addresses ({tried})" if reached else
                f"it reaches none of this machine's addresses: {tried}",
                "let it connect to all TCP ports here, or name the network: launch.interface=NAME")
    return chosen, found


def apart(reached: Mapping[HostSlots, Mapping[HostSlots, bool]],
          addresses: Mapping[HostSlots, str]) -> dict[HostSlots, Trouble]:
    """Who is to blame where hosts do not reach each other: one that nobody reaches of those that tried, else they.

    Args:
        reached: of each host that answers, of each other that it tried to reach, whether it did.
        addresses: of all hosts, where that was tried.
    """
    tried = {other for others in reached.values() for other in others}
    nowhere = {other for other in tried if not any(others.get(other) for others in reached.values())}
    found = {}
    for host, address in addresses.items():
        missed = [f"{other.name} ({addresses[other]})" for other, there in reached.get(host, {}).items()
                  if not there and other not in nowhere]
        if host not in reached:
            found[host] = Trouble("it does not answer any more", f"is it on? ping {host.name.rpartition('@')[2]}", True)
        elif host in nowhere:
            found[host] = hidden(address)
        elif missed:
            found[host] = misses(missed)
    return found


def hidden(address: str) -> Trouble:
    """What to say of a host that others do not reach."""
    return Trouble(f"the others do not reach it at {address}", APART_REMEDY)


def misses(others: Sequence[str]) -> Trouble:
    """What to say of a host that does not reach ``others``."""
    more = f" and {len(others) - NAMED_HOSTS} more" if len(others) > NAMED_HOSTS else ""
    return Trouble(f"it does not reach {', '.join(others[:NAMED_HOSTS])}{more}", APART_REMEDY)


def listed(troubles: Mapping[HostSlots, Sequence[Trouble]], count: int) -> str:
    """The table of all troubles, a line for each; ``count``: of so many hosts."""
    bad = sum(bool(each) for each in troubles.values())
    rows = [("HOST", "PROBLEM", "WHAT TO DO")]
    rows += [(host.name, trouble.what, trouble.remedy) for host, each in troubles.items() for trouble in each]
    return "\n".join([f"{bad} of {count} host{'' if count == 1 else 's'} cannot take part:", *table.lines(rows)])


def _versions(host: str, report: Report, standard: Standard, way: Settings):
    theirs = report.get("versions", {})
    for text in versions.differences(standard.framework, theirs, standard.versions):
        name = text.split()[0]
        python = report.get("python", "python")
        if name == "engine":
            remedy = f"{ssh.typed(host, way)} {shlex.quote(f'{python} -m hvtrain.cli.main engine build')}"
        elif name in ("another", "hvtrain"):
            remedy = "install the same hvtrain on all hosts"
        elif name == "python":
            remedy = "use the same Python on all hosts"
        else:
            install = shlex.quote(f"{python} -m pip install {name}=={standard.versions.get(name)}")
            remedy = f"{ssh.typed(host, way)} {install}"
        yield Trouble(text, remedy)


def _code(host: str, report: Report, standard: Standard, way: Settings):
    theirs = report.get("code")
    if theirs is None:
        yield Trouble(f"no directory {standard.module_dir}", "put the job at the same path on all hosts, or share its "
                      f"directory: {_copy(host, standard.module_dir + '/', way)}")
        return
    wrong = [f"{path} {'differs' if path in theirs else 'is missing'}" for path, digest in standard.code.items()
             if theirs.get(path) != digest]
    if wrong:
        more = f" and {len(wrong) - NAMED_FILES} more" if len(wrong) > NAMED_FILES else ""
        yield Trouble(f"other code: {', '.join(wrong[:NAMED_FILES])}{more}",
                      _copy(host, standard.module_dir + "/", way))


def _copy(host: str, path: str, way: Settings) -> str:
    target = f"{host.rpartition('@')[0]}@[{host.rpartition('@')[2]}]".lstrip("@") if ":" in host else host
    options = ssh.options_of(way)
    words = ["rsync", "-a", *(["-e", shlex.join(["ssh", *options])] if options else []), path, f"{target}:{path}"]
    return shlex.join(words)
