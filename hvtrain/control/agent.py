"""The agent: one per host (or per slot under another launcher). Survives whatever its workers do.

It owns the warm process and the shared memory for snapshots, forwards the coordinator's orders and its workers' ends,
and leaves nothing behind when the job or the coordinator ends.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from dataclasses import replace
from typing import IO, Any

from hvtrain.checkpoint.memory import SharedSnapshots
from hvtrain.control import health, messages
from hvtrain.control.boot import Boot
from hvtrain.control.client import ATTEMPT_SECONDS, REOPEN_SECONDS, Link
from hvtrain.control.nursery import EmptyNursery, Nursery
from hvtrain.control.warmstart import WarmProcess
from hvtrain.control.worker_signals import STACKS_SECONDS, STACKS_SIGNAL
from hvtrain.errors import CoordinatorGone, EnvironmentNotReady, ExitCode, TokenRefused
from hvtrain.report import rundir

log = logging.getLogger(__name__)


class Agent:
    """Runs ``slots`` workers of a job on this host. ``run`` returns the job's exit code.

    Without a warm process (and with no slots) it stands by: it is there, runs no worker, and ends with the job.
    A person's Ctrl-C means the whole job, but for a ``volunteer``, which a person has added, only this agent.
    ``rejoin``: how long to look for a coordinator that was lost, seconds; None for ``elastic.rejoin_timeout``.
    ``lock`` says that the run has workers; it is let go of while there are none: another start may go on with the run.
    """

    def __init__(self, boot: Boot, warm: WarmProcess | None, *, name: str, host: str, slots: int, job_digest: str,
                 memory: SharedSnapshots | None = None, volunteer: bool = False, rejoin: float | None = None,
                 lock: IO[str] | None = None):
        from hvtrain import __version__

        self._boot = replace(boot, snapshots=memory.fds if memory is not None else ())
        self._hello = messages.AgentHello(agent=name, host=host, slots=slots, pid=os.getpid(),
                                          version=__version__, job_digest=job_digest, threads=boot.threads)
        elastic, self._lock = boot.job.elastic, lock
        self._rejoin = elastic.rejoin_timeout.seconds if rejoin is None else rejoin
        self._patience, self._unacked = elastic.coordinator_timeout.seconds, elastic.heartbeat_timeout.seconds
        self._link = Link(boot.coordinator, self._patience, self._unacked)
        self._nursery = Nursery(self._boot, warm, host=host, tell=self._tell) if warm is not None else EmptyNursery()
        self._end: messages.End | None = None
        self._lost = 0.0  # when the coordinator was
        self._stopping, self._volunteer = False, volunteer
        self._signs = health.Signs("agent")

    async def run(self) -> int:
        """Serve until the job ends or the coordinator is gone for good.

        Raises:
            EnvironmentNotReady: the coordinator was never reached.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop_asked, signal.SIGTERM if self._volunteer else number)
        try:
            await self._nursery.open()
            await self._link.open(self._hello)
            while True:
                pulse, signs = asyncio.create_task(self._pulse()), asyncio.create_task(self._signs.keep(self._well))
                began = loop.time()
                try:
                    await self._obey()
                finally:
                    pulse.cancel()
                    signs.cancel()
                if loop.time() - began > self._unacked or not self._lost:  # else it let us in to send us away
                    self._lost = loop.time()
                if self._end is not None or not await self._reach_again():
                    break
        finally:
            await self._nursery.close()
            await self._link.close()
            self._signs.end()
        if self._end is None:
            log.error("the coordinator is gone; the workers of this agent saved what they could and were ended")
            return int(ExitCode.LOST_WORKERS)
        return self._end.exit_code

    @property
    def forsaken(self) -> bool:
        """Whether the coordinator has gone without a word on the job's end, and nobody has asked this agent to end."""
        return self._end is None and not self._stopping

    @property
    def reason(self) -> str:
        """Why the job ended, as the coordinator said it."""
        return self._end.reason if self._end is not None else "the coordinator is gone"

    def _stop_asked(self, number: int) -> None:
        self._stopping = True
        asyncio.ensure_future(self._tell(messages.StopAsked(signal=number)))

    async def _tell(self, message: messages.Message) -> None:
        try:
            await self._link.send(message)
        except (ConnectionError, RuntimeError):
            log.debug("the coordinator could not be told: %s", message)

    def _well(self) -> str:
        address, slots = self._boot.coordinator, self._hello.slots
        return (f"{self._hello.agent} is connected to the coordinator at {address.host}:{address.port}, {slots} "
                f"slot{'' if slots == 1 else 's'}")

    async def _pulse(self) -> None:
        while True:
            await self._tell(messages.Beat())
            await asyncio.sleep(self._boot.job.elastic.heartbeat_timeout.seconds / 5)

    async def _obey(self) -> None:
        while (order := await self._link.receive()) is not None:
            if isinstance(order, messages.End):
                self._end = order
                return
            if isinstance(order, messages.Start):
                self._nursery.start(order)
            elif isinstance(order, messages.Refused):
                if self._volunteer:
                    self._end = messages.End(exit_code=int(ExitCode.ENVIRONMENT), reason=order.reason)
                    return
                log.error("no workers for this host: %s", order.reason)
            elif isinstance(order, messages.Kill):
                asyncio.ensure_future(self._kill(order))

    async def _kill(self, order: messages.Kill) -> None:
        if order.stacks:
            self._nursery.signal(order.worker, STACKS_SIGNAL)
            await asyncio.sleep(STACKS_SECONDS)
        self._nursery.signal(order.worker, order.signal)

    async def _reach_again(self) -> bool:
        """Look for the coordinator for elastic.rejoin_timeout. Whoever comes back begins anew: the job has gone on
        without this agent's workers. They take no step meanwhile, and save and stop by themselves, as they hear nothing
        either."""
        loop = asyncio.get_running_loop()
        seconds = max(self._rejoin, self._patience)  # so long the workers wait before they save
        deadline = self._lost + seconds
        log.warning("the coordinator cannot be reached; looking for it for %g s", deadline - loop.time())
        while loop.time() < deadline and not self._stopping:
            if self._lock is not None and self._nursery.empty:
                rundir.unshare(self._lock)
            await self._link.close()
            await asyncio.sleep(REOPEN_SECONDS)  # also if it let us in and sent us away, as it has not missed us yet
            self._link = Link(self._boot.coordinator, self._patience, self._unacked)
            try:
                await self._link.open(self._hello, ATTEMPT_SECONDS)
                self._nursery.clear()
                if self._lock is not None:
                    rundir.share_again(self._lock)
                log.warning("the coordinator is back; this agent's workers begin anew")
                return True
            except (CoordinatorGone, TokenRefused):  # its process has ended; another one may be there by now
                break
            except EnvironmentNotReady:
                continue
        await self._nursery.wait_empty(self._boot.job.launch.stop_timeout.seconds)
        return False
