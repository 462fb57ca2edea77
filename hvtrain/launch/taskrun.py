"""Under ``mpirun`` or ``srun``: each task is an agent with one slot; or, where a worker has several devices, one of a group
of so many tasks, and the others stand by (groups.py).

The first task hosts the coordinator and says where it is (noticefile.py). Another one looks there, asks what the job is
(as any agent that comes by itself does, hvtrain.control.asking), and holds it against its own.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any, Mapping

from hvtrain import failure
from hvtrain.checkpoint.memory import SharedSnapshots
from hvtrain.config import Job
from hvtrain.config.rules import conflicts
from hvtrain.control import asking, guests, messages, versions
from hvtrain.control.agent import Agent
from hvtrain.control.boot import Boot
from hvtrain.control.causes import Cause
from hvtrain.control.client import Address
from hvtrain.control.coordinator import Coordinator
from hvtrain.control.events import JobFailed
from hvtrain.control.warmstart import WarmProcess
from hvtrain.engine.machine import cores
from hvtrain.errors import ConfigError, EnvironmentNotReady, ExitCode, HvtrainError, Problem, UsageError
from hvtrain.launch import measurer, noticefile, settling, tokens
from hvtrain.launch.groups import Groups
from hvtrain.launch.joblaunch import JobLaunch, coordinate, settle
from hvtrain.launch.noticefile import NoticeFile
from hvtrain.launch.settling import Ground, threads_each
from hvtrain.launch.tasks import Task
from hvtrain.report import rundir

POLL_SECONDS = 0.1

END_SECONDS = 5.0
"""A launcher ends all tasks when one fails. So long the others leave the first one to write down how the job ended."""

FREE = ("launch.workers", "launch.port", "hybrid", "checkpoint.resume")
"""What the first task decides for all."""


async def run(launch: JobLaunch, task: Task, warm: WarmProcess, memory: SharedSnapshots) -> int:
    """Be this task's agent, and the coordinator as well if it is the first; returns the exit code.

    Raises:
        UsageError: the slots do not make whole groups, or the job cannot be settled on them.
        EnvironmentNotReady: the coordinator is not found.
    """
    return await (_First if task.rank == 0 else _Other)(launch, task, warm, memory).run()


class _Task:
    """What every task has."""

    def __init__(self, launch: JobLaunch, task: Task, warm: WarmProcess, memory: SharedSnapshots):
        self._launch, self._task, self._warm, self._memory = launch, task, warm, memory
        self._token = tokens.given(launch.job.launch.token_file)
        self._stated = noticefile.of_environment(self._token)
        self._notice = NoticeFile(os.path.abspath(launch.job.run.dir), task.name)
        self._groups = Groups(settling.stages_of(launch.job) or 1)

    def _agent(self, boot: Boot, host: str, digest: str) -> Agent:
        task = self._task
        leads = self._groups.leads(task.local_rank, task.local_size)
        if not leads:
            self._dismiss_warm()
        boot = replace(boot, threads=self._threads(boot.job))
        return Agent(boot, self._warm if leads else None, name=f"{task.rank:04d}@{host}", host=host, slots=int(leads),
                     job_digest=digest, memory=self._memory, lock=rundir.share(boot.run_dir),
                     rejoin=boot.job.elastic.coordinator_timeout.seconds)  # nobody starts the first task again

    def _threads(self, job: Job) -> int:
        """CPU threads of this task's worker."""
        task = self._task
        shared = threads_each(job, max(1, self._groups.count(task.local_size)))
        if job.launch.threads != "auto":
            return shared
        # Where the launcher binds each task to processors of its own, these are not to be divided again.
        return max(shared, min(cores(), task.processors * self._groups.stages))

    def _dismiss_warm(self) -> None:
        self._warm.process.kill()
        self._warm.process.wait()

    def _check_slots(self) -> None:
        """Raise UsageError if this host's tasks do not make whole groups."""
        task = self._task
        if task.local_rank == 0:
            typed = self._launch.command.partition(" hvtrain ")[2]
            self._groups.check(host=socket.gethostname(), slots=task.local_size, hosts=task.hosts,
                               command=f"hvtrain {typed}", launcher=task.launcher)


class _First(_Task):
    """Hosts the coordinator, and an agent like the others."""

    async def run(self) -> int:
        self._notice.remove()  # whatever is there is of another job
        try:
            code = await coordinate(self._prepared(), self._start, follow=self._launch.job.elastic.enabled,
                                    token=self._token, drawn=self._token is None, open_to_all=self._task.hosts > 1)
        except HvtrainError as error:
            self._dismiss_warm()
            with suppress(OSError):  # a full disk must not hide what was wrong
                self._notice.write_end(int(error.exit_code))
            raise
        await asyncio.gather(self._serving, return_exceptions=True)
        with suppress(OSError):
            if code:  # a task that has just heard what the job is may find nobody any more
                self._notice.write_end(code)
            else:
                self._notice.remove()
        return code

    def _prepared(self) -> JobLaunch:
        """The job for the tasks that there are. Raises UsageError or ConfigError."""
        self._check_slots()
        task = self._task
        launch = settle(self._launch, Ground(workers=None, slots=task.local_size, hosts=task.hosts))
        self._groups = Groups(settling.stages_of(launch.job) or 1)
        workers = self._groups.count(task.size)
        job = launch.job.model_copy(update={"launch": launch.job.launch.model_copy(update={
            "workers": workers, **({"port": self._stated.port} if self._stated is not None else {})})})
        broken = conflicts(job)
        if broken:
            raise ConfigError([Problem(conflict.message, "command line", key=conflict.key) for conflict in broken])
        self._launch = replace(launch, job=job, workers=workers)
        return self._launch

    async def _start(self, address: Address, coordinator: Coordinator) -> None:
        agent = self._agent(self._launch.boot(address, 1), socket.gethostname(), self._launch.digest)
        self._serving = asyncio.create_task(agent.run())
        self._serving.add_done_callback(lambda task: _left(task, coordinator))
        if self._stated is None:
            try:
                self._notice.write(address)
            except OSError as error:
                raise EnvironmentNotReady(f"where the job's coordinator is could not be written into {self._notice.path}: "
                                          f"{error.strerror}.") from None


class _Other(_Task):
    """An agent and nothing else."""

    async def run(self) -> int:
        self._check_slots()
        found = await self._find()
        if isinstance(found, int):
            self._dismiss_warm()
            return found
        address, given = found
        boot = Boot.from_json({**given.boot, "coordinator": asdict(address), "snapshots": []})
        check_same(self._launch.job.model_dump(mode="json"), boot.job.model_dump(mode="json"))
        boot = replace(boot, coordinator=replace(address, tls=boot.job.launch.tls), module_dir=self._launch.module_dir,
                       run_dir=os.path.abspath(self._launch.job.run.dir))
        self._groups = Groups(settling.stages_of(boot.job) or 1)
        agent = self._agent(boot, given.host, given.job_digest)
        try:
            code = await agent.run()
        except EnvironmentNotReady:
            code = await self._let_the_first_end()
            if code is None:
                raise
            return code
        if code:
            print(f"hvtrain: {agent.reason}", file=sys.stderr)
            await self._let_the_first_end()
        return code

    async def _find(self) -> tuple[Address, messages.JobGiven] | int:
        """Where the coordinator is, and what it says the job is; or the exit code of a first task that has failed.

        Raises:
            EnvironmentNotReady: nobody says it within launch.start_timeout.
        """
        patience = self._launch.job.launch.start_timeout.seconds
        if settling.may_measure(self._launch.job):
            patience += measurer.SECONDS  # the first task may have to
        request = messages.JobAsk(host=socket.gethostname(), machine=guests.machine(), slots=1, versions=versions.own())
        loop = asyncio.get_running_loop()
        deadline, problem = loop.time() + patience, ""
        while loop.time() < deadline:
            address = self._stated or self._notice.read()
            if isinstance(address, int):
                return address
            if address is not None:
                try:
                    return address, await asking.ask(address, request)
                except EnvironmentNotReady as error:  # of a former job, or not there yet
                    problem = str(error)
            await asyncio.sleep(POLL_SECONDS)
        if not problem:
            problem = (f"there is no {self._notice.path} of this {self._task.launcher} job. run.dir must lie on a disk that "
                       f"all hosts share; without one, set ${noticefile.VARIABLE}=HOST:PORT (of the first task's host) and "
                       f"${tokens.VARIABLE} for all tasks")
        raise EnvironmentNotReady(f"the job's coordinator was not found within launch.start_timeout ({patience:g} s): "
                                  f"{problem}. The first task's own output may say why.")

    async def _let_the_first_end(self) -> int | None:
        """Give the first task time to write down how the job has ended; what it says."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (END_SECONDS if self._stated is None else 1.0)
        while loop.time() < deadline and (self._stated is not None or isinstance(self._notice.read(), Address)):
            await asyncio.sleep(POLL_SECONDS)
        found = self._notice.read() if self._stated is None else None
        return found if isinstance(found, int) else None


def check_same(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Raise UsageError unless this task was started with the job that the first one was started with."""
    found = [f"{key} is {_at(ours, key)!r} here and {_at(theirs, key)!r} there" for key in _keys({**theirs, **ours})
             if not any(key == free or key.startswith(f"{free}.") for free in FREE) and _at(ours, key) != _at(theirs, key)]
    if found:
        raise UsageError(f"this task was not started with the same job as the first one: {'; '.join(found[:5])}. Start all "
                         "tasks with the same command, and bring the same job file to all hosts")


def _keys(tree: Mapping[str, Any], head: str = "") -> list[str]:
    """Dotted keys of sections and their values; lists and free arguments as a whole."""
    found: list[str] = []
    for key, value in tree.items():
        inner = isinstance(value, Mapping) and not head
        found += _keys(value, f"{key}.") if inner else [f"{head}{key}"]
    return found


def _at(tree: Mapping[str, Any], key: str) -> Any:
    section, _, name = key.partition(".")
    found = tree.get(section)
    return found.get(name) if name and isinstance(found, Mapping) else found


def _left(task: asyncio.Task, coordinator: Coordinator) -> None:
    """This process's own agent has ended. If by an exception, the job must not wait for it; and signals mean the job now."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, coordinator.request_stop, number)
    if not task.cancelled() and task.exception() is not None:
        account = failure.account(task.exception())
        coordinator.feed(JobFailed(Cause(account.exit_code, account.reason, account.traceback, salvage=False)))
