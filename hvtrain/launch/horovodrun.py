"""Under ``horovodrun ... hvtrain run ...``: each process that it starts is an agent with one slot; or, where a worker has
several devices, one of a group of so many processes, and the others stand by (groups.py).

The first one hosts the coordinator and tells the others where it is (board.py). With elastic flags (``--min-np``,
``--host-discovery-script``) agents come and go with their hosts, and the first keeps horovodrun's driver informed
(horovod_elastic.py, liaison.py). If the first itself is lost, the others start over: the first of them hosts a new
coordinator, and the job goes on from what is left of its state.
"""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import replace
from typing import Any

from hvtrain import failure
from hvtrain.checkpoint.memory import SharedSnapshots
from hvtrain.config import Job
from hvtrain.config.rules import conflicts
from hvtrain.control.agent import Agent
from hvtrain.control.causes import Cause
from hvtrain.control.client import Address
from hvtrain.control.coordinator import Coordinator
from hvtrain.control.events import AgentLeaving, JobFailed
from hvtrain.control.warmstart import WarmProcess
from hvtrain.errors import ConfigError, EnvironmentNotReady, ExitCode, Problem
from hvtrain.launch import horovod_elastic as elastic
from hvtrain.launch import lives, measurer, settling
from hvtrain.launch.board import Board, Notice
from hvtrain.launch.groups import Groups
from hvtrain.launch.horovod_elastic import Place
from hvtrain.launch.joblaunch import JobLaunch, coordinate, settle
from hvtrain.launch.kvstore import Store
from hvtrain.launch.liaison import Liaison
from hvtrain.launch.settling import Ground


def is_parent() -> bool:
    """Whether this process was started by horovodrun, with elastic flags or without."""
    return "HOROVOD_RANK" in os.environ and "HOROVOD_GLOO_RENDEZVOUS_PORT" in os.environ


def is_elastic() -> bool:
    """Whether it was given elastic flags, so that processes come and go."""
    return elastic.is_elastic()


def world_size() -> int:
    return int(os.environ["HOROVOD_SIZE"])


def rank() -> int:
    return int(os.environ["HOROVOD_RANK"])


def interface() -> str | None:
    """The interface that horovodrun has chosen, if it named one."""
    return os.environ.get("HOROVOD_GLOO_IFACE") or None


async def run(launch: JobLaunch, warm: WarmProcess, memory: SharedSnapshots | None = None) -> int:
    """Be this process's agent, and the coordinator as well if this is the first; returns the exit code.

    Raises UsageError where the slots do not make whole groups, or the job cannot be settled on them.
    """
    return await (_First if rank() == 0 else _Other)(launch, warm, memory).run()


class _Process:
    """What every process has."""

    def __init__(self, launch: JobLaunch, warm: WarmProcess, memory: SharedSnapshots | None):
        self._launch, self._warm, self._memory = launch, warm, memory
        self._store = Store.of_environment()
        self._board = Board(self._store, os.path.abspath(launch.job.run.dir))
        self._elastic = elastic.is_elastic()

    def _agent(self, notice: Notice) -> Agent:
        assert notice.address is not None
        launch = adopt(self._launch, notice)
        host = os.environ.get("HOROVOD_HOSTNAME", "localhost")
        groups = _groups(launch.job)
        here = Place.of_environment()
        leads = groups.leads(here.local_rank, here.local_size)
        if not leads:
            self._dismiss_warm()
        boot = launch.boot(notice.address, max(1, groups.count(here.local_size)))
        return Agent(boot, self._warm if leads else None, name=f"{rank():04d}@{elastic.own_slot()}", host=host,
                     slots=int(leads), job_digest=launch.digest, memory=self._memory,
                     rejoin=launch.job.elastic.coordinator_timeout.seconds)  # then it is up to horovodrun

    def _dismiss_warm(self) -> None:
        self._warm.process.kill()
        self._warm.process.wait()

    def _check_slots(self) -> None:
        """Raise UsageError if this host's slots do not make whole groups; its first process says it, horovodrun ends the
        others. With elastic flags, slots that are too few for a group stand by."""
        here = Place.of_environment()
        if here.local_rank == 0 and not self._elastic:
            typed = self._launch.command.split(maxsplit=3)[-1]  # without horovodrun -np N
            _groups(self._launch.job).check(host=os.environ.get("HOROVOD_HOSTNAME", "localhost"), slots=here.local_size,
                                            hosts=here.cross_size, command=typed)


class _First(_Process):
    """Hosts the coordinator, and an agent like the others."""

    def __init__(self, launch: JobLaunch, warm: WarmProcess, memory: SharedSnapshots | None):
        super().__init__(launch, warm, memory)
        self._notice = Notice(start=launch.start, again=lives.life() > 1)
        self._agents: list[asyncio.Task] = []
        self._liaison: Liaison | None = None

    async def run(self) -> int:
        self._check_slots()
        self._launch = self._settled()
        hybrid = self._launch.job.hybrid
        groups = _groups(self._launch.job)
        self._notice = replace(self._notice, workers=lives.first_size(groups.stages),
                               hybrid=hybrid.model_dump(mode="json") if hybrid is not None else None)
        launch = replace(adopt(self._launch, self._notice), workers=groups.count(world_size()))
        _check_workers(launch.job)
        code = await coordinate(launch, self._start, follow=self._elastic)
        await asyncio.gather(*self._agents, return_exceptions=True)
        if self._liaison is not None:
            await self._liaison.close()
        if self._notice.address is not None:
            self._board.clear(self._notice.address)
        return code

    def _settled(self) -> JobLaunch:
        """The job for the slots that there are; one that goes on is that of the former life."""
        section, here = lives.hybrid(), Place.of_environment()
        if section is not None:
            return replace(self._launch, job=settling.adopt(self._launch.job, section))
        return settle(self._launch, Ground(workers=None, slots=here.local_size, hosts=here.cross_size))

    async def _start(self, address: Address, coordinator: Coordinator) -> None:
        self._notice = replace(self._notice, address=address)
        agent = asyncio.create_task(self._agent(self._notice).run())
        agent.add_done_callback(lambda task: _report(task, coordinator))
        self._agents.append(agent)
        try:
            if self._elastic:
                await self._liaise(coordinator)
            else:
                await self._board.announce(self._notice)
        except OSError as error:
            raise EnvironmentNotReady(f"the job's coordinator could not be announced: {error}.") from None

    async def _liaise(self, coordinator: Coordinator) -> None:
        def evict(slot: str) -> None:
            for name in coordinator.agents():
                if _slot(name) == slot:
                    coordinator.feed(AgentLeaving(name))

        def resign() -> None:
            coordinator.feed(JobFailed(Cause(
                int(ExitCode.LOST_WORKERS),
                "horovodrun has taken the first host out of the job; the next one takes over", kind="resigned")))

        self._liaison = Liaison(self._store, self._board, connected=lambda: map(_slot, coordinator.agents()),
                                evict=evict, resign=resign)
        coordinator.takes_over = self._notice.again
        coordinator.before_close = self._liaison.settle
        await self._liaison.start(self._notice, self._launch.interface)


class _Other(_Process):
    """An agent and nothing else."""

    async def run(self) -> int:
        self._check_slots()
        patience = self._launch.job.launch.start_timeout.seconds
        if settling.may_measure(self._launch.job):
            patience += measurer.SECONDS  # the first process may have to
        notice = await self._board.find(patience)
        if notice.address is None:
            self._dismiss_warm()
            if notice.over is None:
                await self._next_life(notice, unreached=False)
            return int(ExitCode.LOST_WORKERS) if notice.over is None else notice.over
        agent = self._agent(notice)
        try:
            code: int | None = await agent.run()
        except EnvironmentNotReady:
            # The coordinator may have gone since it was announced; who does not reach the next one either gives up.
            if self._elastic and not lives.unreached():
                await self._next_life(notice, unreached=True)
            raise
        if self._elastic:
            code = None if agent.forsaken else await elastic.verdict(code, self._board)
        if code is None:
            await self._next_life(notice, unreached=False)
            code = int(ExitCode.LOST_WORKERS)
        if code:
            print(f"hvtrain: {agent.reason}", file=sys.stderr)
        return code

    async def _next_life(self, notice: Notice, *, unreached: bool) -> None:
        """Start over when there is a coordinator again; returns if the driver has no place for this process."""
        place = await elastic.next_place(self._store)
        if place is not None:
            heard = notice.address is not None
            lives.start_over(place.environment(), workers=notice.workers if heard else None, memory=self._memory,
                             unreached=unreached, hybrid=notice.hybrid if heard else None)


def adopt(launch: JobLaunch, notice: Notice) -> JobLaunch:
    """``launch`` as the notice has it, so that all processes have the same job, whenever they were started."""
    job = launch.job
    changes: dict[str, Any] = {"launch": job.launch.model_copy(update={"workers": notice.workers})}
    if notice.hybrid is not None:
        job = settling.adopt(job, notice.hybrid)
    if notice.again:
        changes["checkpoint"] = job.checkpoint.model_copy(update={"resume": "auto"})
    return replace(launch, job=job.model_copy(update=changes), start=notice.start)


def _check_workers(job: Job) -> None:
    """Raise ConfigError where the job forbids so many workers, which were not known when its file was read."""
    broken = conflicts(job) if job.hybrid is not None else []
    if broken:
        raise ConfigError([Problem(conflict.message, "command line", key=conflict.key) for conflict in broken])


def _groups(job: Job) -> Groups:
    return Groups(settling.stages_of(job) or 1)


def _slot(agent: str) -> str:
    return agent.partition("@")[2]


def _report(agent: asyncio.Task, coordinator: Coordinator) -> None:
    """This process's own agent has ended; if by an exception, the job must not wait for it."""
    if not agent.cancelled() and agent.exception() is not None:
        account = failure.account(agent.exception())
        coordinator.feed(JobFailed(Cause(account.exit_code, account.reason, account.traceback, salvage=False)))
