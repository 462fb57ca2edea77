"""``hvtrain run`` over hosts: they are met, their network is found, then the job runs on them.

::

    hosts (-H, a file, a script) -> contact -> all well? -no-> a table of what is wrong; nothing has been started
                                                 | yes
                                     coordinator here, an agent on each host (:mod:`.fleet`) -> the job
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Callable, Sequence

from hvtrain.config import Job
from hvtrain.config.rules import conflicts
from hvtrain.control import auth
from hvtrain.control.shares import Shares
from hvtrain.control.sums import kept_threads
from hvtrain.errors import ConfigError, EnvironmentNotReady, Problem, UsageError
from hvtrain.launch import contact as contacts
from hvtrain.launch import judging, tokens
from hvtrain.launch.contact import Contact, Met, Network, Party
from hvtrain.launch.discovery import Script
from hvtrain.launch.fleet import Fleet
from hvtrain.launch.hosts import HostSlots
from hvtrain.launch.joblaunch import JobLaunch, coordinate, settle
from hvtrain.launch.settling import Ground, stages_of
from hvtrain.report import console as consoles
from hvtrain.report.rundir import RunDirectory


async def run(launch: JobLaunch, hosts: Sequence[HostSlots] | None, script: Script | None, *, follow: bool) -> int:
    """Run a job on these ``hosts``, or on those that the ``script`` names; returns its exit code.

    Args:
        follow: the job takes all slots that there are; else as many as ``launch.workers``.

    Raises:
        EnvironmentNotReady: hosts cannot take part; of those of a script, all of them.
    """
    console = consoles.choose(launch.job.log.console)
    given = tokens.given(launch.job.launch.token_file)
    token = given or auth.new_token()
    contact = Contact(launch, token, lambda host, line: print(f"[{host}] {line}", flush=True))
    if hosts is None:
        assert script is not None
        hosts = await _first_hosts(script, launch)
    console.say(f"connecting to {_names(hosts)} ...")
    party = await contact.meet_all(hosts)
    try:
        network = await _prepare(party, hosts, launch, tolerant=script is not None)
        launch, kept = _settled(launch, party, network, follow)
        _greet(console.say, party, network, kept)
    except BaseException:
        await party.close()
        raise
    fleet = Fleet(launch, contact, party, script)
    try:
        return await coordinate(launch, fleet.start, follow=follow, on_drop=fleet.drop, token=token, drawn=given is None,
                                open_to_all=not all(met.here for met in party.met.values()))
    finally:
        await fleet.end()


async def _first_hosts(script: Script, launch: JobLaunch) -> tuple[HostSlots, ...]:
    """The hosts that the script names at first; it may take launch.start_timeout until it names enough."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + launch.job.launch.start_timeout.seconds
    least = launch.job.elastic.min_workers
    while True:
        found = await script.look()
        slots = sum(host.slots for host in found)
        if slots >= least:
            return found
        if loop.time() > deadline:
            raise EnvironmentNotReady(f"the host discovery script {script.command} has named {slots} slots within "
                                      f"{launch.job.launch.start_timeout}; elastic.min_workers is {least}.")
        await asyncio.sleep(launch.job.launch.discovery_interval.seconds)


async def _prepare(party: Party, hosts: Sequence[HostSlots], launch: JobLaunch, *, tolerant: bool) -> Network:
    """The job's network. Raises EnvironmentNotReady with a table of all that is wrong."""
    await party.part_with_the_unfit()
    found = Network("", "")
    if party.met and (tolerant or not any(party.troubles.values())):
        found = await contacts.find_network(party, launch.job.launch.interface)
        await party.part_with_the_unfit()
    wrong = {host: party.troubles[host] for host in hosts if party.troubles[host]}
    if not wrong:
        return found
    text = judging.listed(wrong, len(hosts))
    enough = sum(host.slots for host in party.met) >= launch.job.elastic.min_workers
    if tolerant and party.met and enough and found.address:
        print(f"hvtrain: {text}\nThe job starts without; they are tried again.", flush=True)
        return found
    raise EnvironmentNotReady(text)


def _settled(launch: JobLaunch, party: Party, network: Network, follow: bool) -> tuple[JobLaunch, int | None]:
    """The job on these hosts, and the number of threads that it keeps of a former start, if any.

    Raises ConfigError, UsageError where it cannot be on so many workers.
    """
    hosts = list(party.met)
    slots = sum(host.slots for host in hosts)
    workers = min(slots, launch.job.elastic.max_workers or slots) if follow else launch.workers
    kept = _kept_threads(replace(launch, workers=workers))
    job = _with_threads(launch.job, party, kept)
    launch = replace(launch, job=job)
    sized = job.model_copy(update={"launch": job.launch.model_copy(update={"workers": workers})})
    broken = conflicts(sized)
    if broken:
        raise ConfigError([Problem(conflict.message, "command line", key=conflict.key) for conflict in broken])
    if job.elastic.on_resize == "keep_local_batch":  # whose batch is that of the first number of workers
        job = sized
    launch = replace(launch, job=job, workers=workers, interface=network.interface, address=network.address)
    if job.hybrid is None:
        return launch, kept
    stages = stages_of(job)
    if stages is None:
        raise UsageError("over several hosts the number of stages is not found out by itself. Give it: hybrid.stages=N "
                         "(hvtrain plan says which)")
    return settle(launch, Ground(workers, slots=stages * max(host.slots for host in hosts), hosts=len(hosts))), kept


def _kept_threads(launch: JobLaunch) -> int | None:
    """What ``launch.threads: auto`` has been in this run so far; None if it begins or a person chooses."""
    job = launch.job
    if job.launch.threads != "auto" or job.checkpoint.resume == "never":
        return None
    return kept_threads(RunDirectory(job.run.dir).sums, launch.size)


def _with_threads(job: Job, party: Party, kept: int | None = None) -> Job:
    """``launch.threads: auto`` is what this run has ``kept``, or the least that a slot has anywhere: see
    :mod:`hvtrain.control.shares`."""
    if job.launch.threads != "auto":
        return job
    least = min(_threads_of(host, met) for host, met in party.met.items())
    return job.model_copy(update={"launch": job.launch.model_copy(update={"threads": kept or least})})


def _threads_of(host: HostSlots, met: Met) -> int:
    """Of each slot."""
    return max(1, int(met.report.get("cores", 1)) // host.slots)


def _greet(say: Callable[[str], None], party: Party, network: Network, kept: int | None) -> None:
    say(f"hosts: {_names(list(party.met))}; network {network.interface}, the coordinator is at {network.address}")
    shares = Shares(kept)
    for host, met in party.met.items():
        if short := shares.shortage(host.name, host.slots, _threads_of(host, met)):
            say(f"warning: {short}")
    blind = [met.host.name for met in party.met.values() if not met.report.get("sees_run", True)]
    if blind:
        say(f"warning: {', '.join(blind)} cannot see the run directory. Checkpoints are written by the host of rank 0 "
            "only, and lost with its disk; a shared directory (run.dir) is safer")


def _names(hosts: Sequence[HostSlots]) -> str:
    """For people, and not more of them than they want to read."""
    shown = ", ".join(map(str, hosts[:8]))
    return f"{shown} and {len(hosts) - 8} more" if len(hosts) > 8 else shown
