"""``hvtrain run`` with workers on several hosts: -H, --hostfile, --host-discovery-script."""

from __future__ import annotations

import json
from typing import Any, Callable

import click

OPTIONS = ("hosts", "hostfile", "host_discovery_script", "ssh_port", "ssh_identity_file")


def options(command: Callable) -> Callable:
    """Decorate a command with the options; they are keys of the job's ``launch`` section."""
    for option in reversed((
        click.option("-H", "--hosts", metavar="H1:N,H2:N", help="Start workers on these hosts over ssh, N on each."),
        click.option("--hostfile", type=click.Path(exists=True, dir_okay=False), metavar="FILE",
                     help="The same, from a file with lines such as: h1 slots=4"),
        click.option("--host-discovery-script", metavar="PROGRAM",
                     help="The same, from what this program prints, again and again (h1:4 on a line): hosts come and go."),
        click.option("--ssh-port", type=click.IntRange(1, 65535), metavar="PORT", help="Port of the hosts' sshd."),
        click.option("--ssh-identity-file", type=click.Path(exists=True, dir_okay=False), metavar="FILE",
                     help="Key for the hosts."),
    )):
        command = option(command)
    return command


def are_named(given: dict[str, Any]) -> bool:
    """Whether the command line says which hosts."""
    return any(given[name] is not None for name in OPTIONS[:3])


def overrides(given: dict[str, Any], workers: int | None) -> list[str]:
    """The options as settings: hosts given here go before those of the job file, and before its number of workers.

    Raises:
        UsageError: two options say which hosts.
    """
    from hvtrain.errors import UsageError

    ways = [name for name in OPTIONS[:3] if given[name] is not None]
    if len(ways) > 1:
        one, other = ("-H" if way == "hosts" else f"--{way.replace('_', '-')}" for way in ways[:2])
        raise UsageError(f"{one} and {other} both say which hosts there are; give one of them")
    found = [f"launch.{name}={json.dumps(given[name])}" for name in OPTIONS if given[name] is not None]
    if ways:
        found += [f"launch.{name}=null" for name in OPTIONS[:3] if name not in ways]
        found += [] if workers else ["launch.workers=null"]
    return found


def start(path: str, job: Any, command: str, *, given: Any, slots: int | None, plan: str | None) -> int:
    """Run the job of the file (or script) ``path`` on the hosts that it names; returns the exit code."""
    import asyncio
    from pathlib import Path

    from hvtrain.chaos.loading import load as load_plan
    from hvtrain.errors import UsageError
    from hvtrain.launch import hostrun, hosts
    from hvtrain.launch.discovery import Script
    from hvtrain.launch.joblaunch import prepare

    if slots is not None:
        raise UsageError("--slots is for a job whose other agents come by themselves; with hosts, each says how many "
                         "slots it has: -H h1:4,h2:4")
    launch = job.launch
    named, script = None, None
    if launch.hosts is not None:
        named = hosts.of_list(launch.hosts)
    elif launch.hostfile is not None:
        try:
            named = hosts.of_file(Path(launch.hostfile).read_text(errors="replace"), launch.hostfile)
        except OSError as error:
            raise UsageError(f"the hostfile {launch.hostfile} cannot be read: {error.strerror}") from None
    else:
        script = Script(launch.host_discovery_script)
    if named is not None:
        count = sum(host.slots for host in named)
        if launch.workers is not None and launch.workers > count:
            raise UsageError(f"{launch.workers} workers need as many slots, but the hosts have {count}: "
                             f"{','.join(map(str, named))}")
    faults = load_plan(plan, workers=launch.workers or sum(host.slots for host in named or ()) or 1) if plan else None
    prepared = prepare(job, path, command, interface=None, faults=faults, given=given)
    try:
        return asyncio.run(hostrun.run(prepared, named, script, follow=launch.workers is None))
    except KeyboardInterrupt:
        click.echo("hvtrain: stopped before the job had begun", err=True)
        raise
