"""``hvtrain agent``: an agent that is given an address and the job's token, and nothing else.

::

    look for the coordinator --> ask what the job is --> serve --> the job is over: its exit code
            ^    (--wait)                                  |
            +--------------- the coordinator is gone ------+       a job that is started again finds its agents waiting
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from dataclasses import asdict, dataclass, replace
from typing import Callable, Mapping

from hvtrain.checkpoint.memory import SharedSnapshots
from hvtrain.control import asking, guests, messages, versions, warmstart
from hvtrain.control.agent import Agent
from hvtrain.control.boot import Boot
from hvtrain.control.client import Address
from hvtrain.errors import CoordinatorGone, EnvironmentNotReady, ExitCode, TokenRefused, UsageError
from hvtrain.launch import hostcheck
from hvtrain.launch.settling import stages_of, threads_each
from hvtrain.report import rundir

NAMED_FILES = 3
"""Files of other code that are named."""

LOOK_SECONDS = 1.0
"""Pause between two looks for a coordinator that is not there."""


@dataclass(frozen=True)
class Helper:
    """What this host has for a job, and where its code is.

    Args:
        slots: workers; None for one for each GPU, or for each group of them that a worker needs, else one.
        name: of the agent, "" to be given one.
        code: the directory with the job's code; None: the same as on the coordinator's host.
        wait: seconds to look for a coordinator.
    """

    slots: int | None
    name: str = ""
    code: str | None = None
    wait: float = 300.0


def serve(address: Address, here: Helper, say: Callable[[str], None]) -> int:
    """Be an agent of the job at ``address`` until it ends; returns its exit code.

    Raises:
        UsageError: this host cannot take part.
        TokenRefused: the token is another job's.
        EnvironmentNotReady: there is no coordinator.
    """
    code: int | None = None
    while True:
        try:
            given = asyncio.run(_find(address, here, say, again=code is not None))
        except EnvironmentNotReady as error:
            if code is None:
                raise
            say(str(error))
            return code
        code, forsaken = _serve(address, given, here, say)
        if not forsaken:
            return code


async def _find(address: Address, here: Helper, say: Callable[[str], None], *, again: bool) -> messages.JobGiven:
    """Ask what the job is, as soon as somebody is there to be asked; ``again`` if this agent has been in it before."""
    request = messages.JobAsk(agent=here.name, host=socket.gethostname(), machine=guests.machine(),
                              slots=here.slots or 0, versions=versions.own())
    deadline, told = time.monotonic() + here.wait, ""
    while True:
        try:
            return await asking.ask(address, request)
        except TokenRefused:
            raise
        except (EnvironmentNotReady, UsageError) as error:
            if isinstance(error, UsageError) and not again:  # else it may not have missed us yet
                raise
            why = "nobody listens there" if isinstance(error, CoordinatorGone) else str(error)
            if time.monotonic() >= deadline:
                raise EnvironmentNotReady(f"there was no coordinator at {address.host}:{address.port} within {here.wait:g} s "
                                          f"({why}). Start the job with launch.port={address.port}, or look whether this is "
                                          "the address that it says") from None
            if why != told:
                say(f"waiting for the coordinator at {address.host}:{address.port}: {why}")
                told = why
        await asyncio.sleep(LOOK_SECONDS)


def _serve(address: Address, given: messages.JobGiven, here: Helper, say: Callable[[str], None]) -> tuple[int, bool]:
    """The job's exit code, and whether the coordinator has gone without saying it."""
    boot = _boot(address, given, here)
    slots = here.slots or _slots(boot)
    boot = replace(boot, threads=threads_each(boot.job, slots))
    memory = SharedSnapshots.create()
    warm = warmstart.start(boot.job.framework, memory.fds)
    lock = rundir.share(boot.run_dir)  # the next start of this run waits until the workers have saved
    if not _is_shared(boot.run_dir, address):
        say(f"warning: the run directory {boot.run_dir} is not the coordinator's; a checkpoint that is written here stays "
            "here. Put run.dir on a disk that all hosts share")
    say(f"{given.agent}: {slots} slot{'s' if slots > 1 else ''} for {boot.run_dir}")

    async def work() -> tuple[int, bool, str]:
        agent = Agent(boot, warm, name=given.agent, host=given.host, slots=slots, job_digest=given.job_digest,
                      memory=memory, volunteer=True, lock=lock, rejoin=boot.job.elastic.coordinator_timeout.seconds)
        try:
            return await agent.run(), agent.forsaken, agent.reason
        except EnvironmentNotReady as error:  # it went just before
            return int(ExitCode.LOST_WORKERS), True, str(error)

    try:
        code, forsaken, reason = asyncio.run(work())
    finally:
        lock.close()
    say(f"{reason} (exit code {code})")
    return code, forsaken


def _boot(address: Address, given: messages.JobGiven, here: Helper) -> Boot:
    """The boot record for this host."""
    boot = Boot.from_json({**given.boot, "coordinator": asdict(address), "snapshots": []})
    boot = replace(boot, coordinator=replace(address, tls=boot.job.launch.tls))
    code = here.code or boot.module_dir
    check_code(given.code, code, boot.run_dir)
    if os.path.isdir(given.cwd):  # paths of the job mean the same here
        os.chdir(given.cwd)
    job, checkpoint = boot.job, boot.job.checkpoint
    if checkpoint.dir is not None and "://" not in checkpoint.dir:
        checkpoint = checkpoint.model_copy(update={"dir": os.path.join(given.cwd, checkpoint.dir)})
    job = job.model_copy(update={"run": job.run.model_copy(update={"dir": boot.run_dir}), "checkpoint": checkpoint})
    return replace(boot, job=job, module_dir=os.path.abspath(code))


def check_code(standard: Mapping[str, str], directory: str, run_dir: str) -> None:
    """Raise UsageError unless ``directory`` has the job's code as the coordinator's host has it; ``standard``: its files,
    with digests."""
    here = hostcheck.code(directory, run_dir)
    if here is None:
        raise UsageError(f"the job's code is in {directory} on the coordinator's host, and here there is no such directory. "
                         "Bring it here, or say where it is: --code DIRECTORY")
    wrong = [f"{path} {'is another one' if path in here else 'is missing'}" for path, digest in standard.items()
             if here.get(path) != digest]
    if wrong:
        more = f" and {len(wrong) - NAMED_FILES} more" if len(wrong) > NAMED_FILES else ""
        raise UsageError(f"the job's code in {directory} is not that of the coordinator's host: "
                         f"{', '.join(wrong[:NAMED_FILES])}{more}. Copy it from there")


def _slots(boot: Boot) -> int:
    """Workers that this host's GPUs are good for; one if it has none."""
    from hvtrain.engine.machine import gpus

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = len(gpus()) if visible is None else len([name for name in visible.split(",") if name.strip()])
    return max(1, count // (stages_of(boot.job) or 1))


def _is_shared(run_dir: str, address: Address) -> bool:
    """Whether the coordinator writes into this directory: it says there where it listens."""
    import json

    try:
        return json.loads(rundir.RunDirectory(run_dir).control.read_text())["port"] == address.port
    except (OSError, ValueError, KeyError, TypeError):
        return False
