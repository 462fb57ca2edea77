"""First contact with hosts: each is reached, looked at and held against the others before training starts.

::

    for each host at once:   ssh --> report          trouble: unknown host key, no Python, ...
    all reports together:    judged                  trouble: other versions, code, configuration; one machine twice
    then                     who reaches which address of this machine, and of each other: the network of the job
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import secrets
import socket
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

import hvtrain
from hvtrain.control import versions
from hvtrain.errors import EnvironmentNotReady
from hvtrain.launch import hostcheck, judging, leftover, network, probing, ssh
from hvtrain.launch.hostlink import HostLink, Silent
from hvtrain.launch.hosts import HostSlots
from hvtrain.launch.joblaunch import JobLaunch
from hvtrain.launch.judging import Standard
from hvtrain.launch.probing import Target
from hvtrain.launch.ssh import Settings, Trouble

ANSWER_SECONDS = 60.0
"""How long a host may take, once it is reached, to look at itself: Python starts from a slow disk, perhaps."""

RESOLVE_SECONDS = 5.0
"""How long it may take to find out whether a name is this machine's."""

AT_ONCE = 64
"""So many hosts are reached at the same time."""

FORWARDED = ("OMP_", "MKL_", "OPENBLAS_", "NCCL_", "GLOO_", "CUDA_", "TF_", "XLA_", "KERAS_", "TORCH_", "PYTORCH_", "HF_",
             "HOROVOD_", "HVTRAIN_", "PYTHON", "LD_LIBRARY_PATH")
"""Variables of this environment that begin so go to all hosts, over standard input."""

SECRET = ("_TOKEN", "_KEY", "_SECRET", "_PASSWORD")
"""... unless they end so: hosts get them before they have been found well."""


@dataclass
class Met:
    """A host that has answered."""

    host: HostSlots
    link: HostLink
    report: dict[str, Any]
    here: bool = False


@dataclass(frozen=True)
class Network:
    """What was found: this machine's ``interface`` and ``address`` on it."""

    interface: str
    address: str


@dataclass
class Party:
    """The hosts that are to take part, and those that cannot."""

    met: dict[HostSlots, Met] = field(default_factory=dict)
    troubles: dict[HostSlots, list[Trouble]] = field(default_factory=lambda: defaultdict(list))

    async def close(self) -> None:
        await asyncio.gather(*(each.link.close() for each in self.met.values()))

    async def part_with_the_unfit(self) -> None:
        """End what was begun on hosts that cannot take part."""
        unfit = [self.met.pop(host) for host, troubles in self.troubles.items() if troubles and host in self.met]
        await asyncio.gather(*(each.link.close() for each in unfit))


class Contact:
    """Reaches hosts for one job.

    Args:
        token: the job's; hosts that get no further than their report never see it.
        show: called with every line that programs on a host print.
    """

    def __init__(self, launch: JobLaunch, token: str, show: Callable[[str, str], None]):
        config = launch.job.launch
        self._launch, self._show, self._job = launch, show, leftover.name_of(token)
        identity = os.path.expanduser(config.ssh_identity_file) if config.ssh_identity_file else None
        if identity is not None and not os.path.isfile(identity):
            raise EnvironmentNotReady(f"there is no key file {identity} (launch.ssh_identity_file).")
        self._settings = Settings(config.ssh_port, identity, config.connect_timeout.seconds)
        self._room = asyncio.Semaphore(AT_ONCE)
        self._mark = Path(os.path.abspath(launch.job.run.dir)) / f".seen-{secrets.token_hex(8)}"
        self.standard: Standard | None = None

    # One host ----------------------------------------------------------------------------------------------
    async def meet(self, host: HostSlots) -> Met | Trouble:
        """Reach a host and have it look at itself."""
        here = await _is_here(host.name)
        command = [sys.executable, "-m", "hvtrain.launch.hostmain"] if here else ssh.command(
            host.name, ssh.remote_python(sys.executable, "hvtrain.launch.hostmain", _python_path()), self._settings)
        link = HostLink(command, lambda line: self._show(host.name, line))
        try:
            await link.open()
        except FileNotFoundError:
            raise EnvironmentNotReady("there is no ssh on this machine.", "apt install openssh-client") from None
        except OSError as error:
            return Trouble(f"ssh cannot be started: {error.strerror}", "", True)
        try:
            patience = self._settings.connect + ANSWER_SECONDS
            report = await link.ask("report", patience, nonce=link.nonce, **self._hello())
            return Met(host, link, report, here)
        except Silent as silent:
            await link.close()
            if silent.code is not None:
                return ssh.trouble(host.name, silent.code, list(link.said), self._settings, sys.executable)
            return Trouble("it was reached, but said nothing", "does a start-up file of the shell there wait for "
                           f"something? try: {ssh.typed(host.name, self._settings)} true", True)
        except BaseException:
            link.cut()
            raise

    def judge(self, met: Met) -> list[Trouble]:
        assert self.standard is not None
        return judging.judge(met.host, met.report, self.standard, self._settings)

    def _hello(self) -> dict[str, Any]:
        launch = self._launch
        return {"job": self._job, "framework": launch.job.framework, "cwd": os.getcwd(), "environment": _environment(),
                "module_dir": launch.module_dir, "run_dir": os.path.abspath(launch.job.run.dir),
                "config": launch.config_path, "mark": str(self._mark)}

    # All of them ---------------------------------------------------------------------------------------------
    async def meet_all(self, hosts: Sequence[HostSlots]) -> Party:
        """Reach all hosts, and judge them."""
        async def one(host: HostSlots) -> Met | Trouble:
            async with self._room:
                return await self.meet(host)

        party = Party()
        made = self._mark.parent.exists()
        try:
            self._leave_mark()
            tasks = [asyncio.create_task(one(host)) for host in hosts]
            try:
                for host, found in zip(hosts, await asyncio.gather(*tasks)):
                    if isinstance(found, Met):
                        party.met[host] = found
                    else:
                        party.troubles[host].append(found)
            except BaseException:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await asyncio.gather(*(task.result().link.close() for task in tasks if not task.cancelled()
                                       and task.exception() is None and isinstance(task.result(), Met)))
                raise
        finally:
            self._remove_mark(made)
        self._judge_all(party)
        return party

    def _judge_all(self, party: Party) -> None:
        trains_here = any(met.here for met in party.met.values())
        first = next((met.report.get("versions", {}) for met in party.met.values()), {})
        launch, ours = self._launch, versions.own()
        self.standard = Standard(
            framework=launch.job.framework, module_dir=launch.module_dir, run_dir=os.path.abspath(launch.job.run.dir),
            config_path=launch.config_path, code=hostcheck.code(launch.module_dir, launch.job.run.dir) or {},
            config=hostcheck.digest(launch.config_path),
            versions=judging.standard_versions(ours, None if trains_here else first))
        for host, met in party.met.items():
            party.troubles[host] += self.judge(met)
        for host, trouble in judging.twins({host: met.report for host, met in party.met.items()}).items():
            party.troubles[host].append(trouble)

    def _leave_mark(self) -> None:
        try:
            self._mark.parent.mkdir(parents=True, exist_ok=True)
            self._mark.touch()
        except OSError as error:
            raise EnvironmentNotReady(f"the run directory {self._mark.parent} cannot be used: {error.strerror}. Choose "
                                      "another with run.dir=PATH.") from None

    def _remove_mark(self, made: bool) -> None:
        try:
            self._mark.unlink(missing_ok=True)
            if not made:
                self._mark.parent.rmdir()
        except OSError:
            pass  # there are files in it by now


async def find_network(party: Party, interface: str | None) -> Network:
    """The address of this machine that all hosts reach, and the hosts each other; who stands in the way is in trouble.

    Raises EnvironmentNotReady if ``interface`` is not there.
    """
    others = {host: met for host, met in party.met.items() if not met.here}
    if not others:
        name = interface or network.loopback()
        return Network(name, network.address_of(name))
    if interface is not None:
        network.address_of(interface)
    pairs = probing.candidates(network.addresses(), interface)
    listener = probing.Listener()
    try:
        targets = await listener.open([address for _, address in pairs])
        ways = await _reach(others, {host: targets for host in others})
    finally:
        listener.close()
    names = {address: name for name, address in pairs}
    found = [(names[target.address], target.address) for target in targets]
    chosen, troubles = judging.common(ways, found)
    for host, trouble in troubles.items():
        party.troubles[host].append(trouble)
    if chosen is None:
        return Network(interface or "", "")
    own = {host: way[chosen] for host, way in ways.items() if host not in troubles}
    own.update({host: found[chosen][1] for host, met in party.met.items() if met.here})
    await _try_each_other(party, own)
    return Network(*found[chosen])


async def _try_each_other(party: Party, own: Mapping[HostSlots, str]) -> None:
    """Whether the hosts reach each other by the addresses that they reach this machine by."""
    heard = dict(zip(own, await asyncio.gather(*(ask(party.met[host], "listening", op="listen", address=address)
                                                 for host, address in own.items()))))
    hosts = [host for host in own if heard[host]]
    doors = {host: Target(*heard[host]["targets"][0]) for host in hosts if heard[host].get("targets")}
    around = {host: [hosts[(number + step) % len(hosts)] for step in range(1, min(len(hosts), probing.NEIGHBOURS + 1))]
              for number, host in enumerate(hosts)}
    tried = {host: [other for other in others if other in doors] for host, others in around.items()}
    ways = await _reach({host: party.met[host] for host in hosts},
                        {host: [doors[other] for other in others] for host, others in tried.items()})
    reached = {host: dict(zip(tried[host], map(bool, way))) for host, way in ways.items()}
    for host, trouble in judging.apart(reached, own).items():
        party.troubles[host].append(trouble)


async def _reach(met: Mapping[HostSlots, Met], targets: Mapping[HostSlots, Sequence[Target]]):
    """For each host, for each of its targets, by which of its addresses it reached it."""
    answers = await asyncio.gather(*(ask(each, "reached", op="reach", targets=[
        target.packed() for target in targets[host]]) for host, each in met.items()))
    return {host: answer.get("by") or [None] * len(targets[host]) for host, answer in zip(met, answers)}


async def ask(met: Met, answer: str, **message: Any) -> dict[str, Any]:
    """What a host answers that was met; nothing, if it does not."""
    try:
        return await met.link.ask(answer, probing.REACH_SECONDS + ANSWER_SECONDS, **message)
    except Silent:
        return {}


async def _is_here(name: str) -> bool:
    """Whether a host is this machine, so that no ssh is needed."""
    user, _, host = name.rpartition("@")
    if user:
        return False
    try:
        found = await asyncio.wait_for(asyncio.to_thread(socket.getaddrinfo, host, None), RESOLVE_SECONDS)
    except (OSError, asyncio.TimeoutError, UnicodeError):
        return False
    own = {address for there in network.addresses().values() for address in there}
    # Debian's /etc/hosts gives a host's own name an address that no interface has, 127.0.1.1.
    return any(entry[4][0] in own or ipaddress.ip_address(entry[4][0].split("%")[0]).is_loopback for entry in found)


def _python_path() -> dict[str, str]:
    """What the far side's Python needs to find hvtrain, where that is not installed."""
    root = Path(hvtrain.__file__).resolve().parents[1]
    paths = [os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if root.name not in ("site-packages", "dist-packages") and str(root) not in paths:
        paths.insert(0, str(root))
    return {"PYTHONPATH": os.pathsep.join(paths)} if paths else {}


def _environment() -> dict[str, str]:
    found = {name: value for name, value in os.environ.items() if name.startswith(FORWARDED) and not name.endswith(SECRET)}
    return {**found, **_python_path()}
