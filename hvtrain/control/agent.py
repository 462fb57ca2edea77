"""The agent: one per host (or per slot under another launcher). Survives whatever its workers do.

It owns the warm process, forwards the coordinator's orders to it and its news to the coordinator, and leaves
nothing behind when the job or the coordinator ends.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
from typing import Any

from hvtrain.control import messages
from hvtrain.control.boot import Boot
from hvtrain.control.client import Link
from hvtrain.control.warmstart import WarmProcess
from hvtrain.errors import ExitCode

log = logging.getLogger(__name__)

REAP_SECONDS = 5.0
"""How long the warm process may take to end once its socket is closed; then it is killed."""

MAX_LINE = 16 << 20
"""Longest line from the warm process, bytes: the traceback of an import may be long."""


class Agent:
    """Runs ``slots`` workers of a job on this host. ``run`` returns the job's exit code."""

    def __init__(self, boot: Boot, warm: WarmProcess, *, name: str, host: str, slots: int, job_digest: str):
        from hvtrain import __version__

        self._boot, self._warm = boot, warm
        self._hello = messages.AgentHello(agent=name, host=host, slots=slots, pid=os.getpid(),
                                          version=__version__, job_digest=job_digest)
        self._link = Link(boot.coordinator)
        self._workers: set[str] = set()
        self._end: messages.End | None = None

    async def run(self) -> int:
        """Serve until the job ends or the coordinator is gone."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop_asked, number)
        self._warm.load(self._boot.to_json())
        reader, writer = await asyncio.open_connection(sock=self._warm.pair, limit=MAX_LINE)
        try:
            await self._link.open(self._hello)
            news = asyncio.create_task(self._hear_warm(reader))
            try:
                await self._obey(writer)
            finally:
                news.cancel()
        finally:
            writer.close()
            await self._end_warm()
            await self._link.close()
        if self._end is None:
            log.error("the coordinator is gone; the workers of this agent were ended")
            return int(ExitCode.LOST_WORKERS)
        return self._end.exit_code

    @property
    def reason(self) -> str:
        """Why the job ended, as the coordinator said it."""
        return self._end.reason if self._end is not None else "the coordinator is gone"

    def _stop_asked(self, number: int) -> None:
        asyncio.ensure_future(self._tell(messages.StopAsked(signal=number)))

    async def _tell(self, message: messages.Message) -> None:
        try:
            await self._link.send(message)
        except (ConnectionError, RuntimeError):
            log.debug("the coordinator could not be told: %s", message)

    async def _obey(self, writer: asyncio.StreamWriter) -> None:
        while (order := await self._link.receive()) is not None:
            if isinstance(order, messages.End):
                self._end = order
                return
            if isinstance(order, messages.Start):
                self._workers.add(order.worker)
                self._order(writer, op="start", worker=order.worker, rank=order.rank,
                            local_rank=order.local_rank)
            elif isinstance(order, messages.Kill):
                self._order(writer, op="kill", worker=order.worker)

    @staticmethod
    def _order(writer: asyncio.StreamWriter, **command: Any) -> None:
        writer.write(json.dumps(command).encode() + b"\n")

    async def _hear_warm(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            news = json.loads(line)
            if news["op"] == "exited":
                self._workers.discard(news["worker"])
                await self._tell(messages.Exited(worker=news["worker"], code=news["code"], signal=news["signal"]))
            elif news["op"] == "load_failed":
                await self._tell(messages.LoadFailed(exit_code=news["exit_code"], reason=news["reason"],
                                                     traceback=news["traceback"]))
            elif news["op"] == "loaded" and news["notice"]:
                await self._tell(messages.Notice(event="start_method", text=news["notice"]))
        # The warm process is gone, and the kernel has ended its workers with it.
        status = self._warm.process.poll()
        await self._tell(messages.LoadFailed(
            exit_code=int(ExitCode.LOST_WORKERS),
            reason=f"the process that starts workers on {self._hello.host} ended (status {status})"))
        for worker in sorted(self._workers):
            await self._tell(messages.Exited(worker=worker, code=0, signal=int(signal.SIGKILL)))

    async def _end_warm(self) -> None:
        try:
            await asyncio.to_thread(self._warm.process.wait, REAP_SECONDS)
        except subprocess.TimeoutExpired:
            self._warm.process.kill()
            await asyncio.to_thread(self._warm.process.wait, REAP_SECONDS)
