"""The agent's side of the warm process: starts workers through it, hears of their ends, and replaces it if it dies."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import subprocess
from typing import Any, Awaitable, Callable

from hvtrain.control import messages, warmstart
from hvtrain.control.boot import Boot
from hvtrain.control.noise import Noise
from hvtrain.control.warmstart import WarmProcess
from hvtrain.errors import ExitCode

log = logging.getLogger(__name__)

REAP_SECONDS = 5.0
"""How long the warm process may take to end once its socket is closed; then it is killed."""

MAX_LINE = 16 << 20
"""Longest line from the warm process, bytes: the traceback of an import may be long."""

MAX_RESTARTS = 5
"""A warm process that dies so often is not replaced any more: importing must be what kills it."""


class Nursery:
    """Workers are started and signalled here; ``tell`` sends news to the coordinator."""

    def __init__(self, boot: Boot, warm: WarmProcess, *, host: str,
                 tell: Callable[[messages.Message], Awaitable[None]]):
        self._boot, self._warm, self._host, self._tell = boot, warm, host, tell
        self._workers: set[str] = set()
        self._writer: asyncio.StreamWriter | None = None
        self._hearing: asyncio.Task | None = None
        self._restarts = 0

    async def open(self) -> None:
        """Tell the warm process what job it is for, and listen to it."""
        try:
            self._warm.load(self._boot.to_json())
        except ConnectionError:
            pass  # it has ended already, which is heard in a moment
        reader, self._writer = await asyncio.open_connection(sock=self._warm.pair, limit=MAX_LINE)
        self._hearing = asyncio.create_task(self._hear(reader))

    def start(self, order: messages.Start) -> None:
        """Start a worker."""
        self._workers.add(order.worker)
        self._order(op="start", worker=order.worker, rank=order.rank, local_rank=order.local_rank, round=order.round,
                    threads=order.threads)

    def signal(self, worker: str, number: int) -> None:
        """Send a signal to a worker, if it is still there."""
        self._order(op="signal", worker=worker, signal=int(number))

    def clear(self) -> None:
        """Kill all workers."""
        for worker in self._workers:
            self.signal(worker, signal.SIGKILL)

    @property
    def empty(self) -> bool:
        """Whether no worker is left."""
        return not self._workers

    async def wait_empty(self, seconds: float) -> None:
        """Wait until all workers have ended by themselves, at most so long."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while self._workers and loop.time() < deadline:
            await asyncio.sleep(0.05)

    async def close(self) -> None:
        """End the warm process, and with it every worker."""
        if self._hearing is not None:
            self._hearing.cancel()
        if self._writer is not None:
            self._writer.close()
        try:
            await asyncio.to_thread(self._warm.process.wait, REAP_SECONDS)
        except subprocess.TimeoutExpired:
            self._warm.process.kill()
            await asyncio.to_thread(self._warm.process.wait, REAP_SECONDS)

    def _order(self, **command: Any) -> None:
        if self._writer is not None:
            self._writer.write(json.dumps(command).encode() + b"\n")

    async def _hear(self, reader: asyncio.StreamReader) -> None:
        while line := await self._line(reader):
            try:
                await self._take(json.loads(line))
            except Exception:  # noqa: BLE001 - one line that cannot be dealt with must not make the agent deaf
                log.exception("news of the warm process could not be dealt with: %.200r", line)
        await self._replace_warm()

    @staticmethod
    async def _line(reader: asyncio.StreamReader) -> bytes:
        try:
            return await reader.readline()
        except ConnectionError:  # it has ended with orders unread, while it was importing the framework
            return b""

    async def _take(self, news: dict[str, Any]) -> None:
        if news["op"] == "exited":
            self._workers.discard(news["worker"])
            await self._tell(messages.Exited(worker=news["worker"], code=news["code"], signal=news["signal"]))
        elif news["op"] == "load_failed":
            await self._tell(messages.LoadFailed(exit_code=news["exit_code"], reason=news["reason"],
                                                 traceback=news["traceback"]))
        elif news["op"] == "loaded" and news["notice"]:
            await self._tell(messages.Notice(event="start_method", text=news["notice"]))

    async def _replace_warm(self) -> None:
        """The warm process is gone, and the kernel has ended its workers with it."""
        status = self._warm.process.poll()
        self._restarts += 1
        text = f"the process that starts workers on {self._host} ended (status {status})"
        lost, self._workers = sorted(self._workers), set()
        if self._restarts > MAX_RESTARTS or not self._boot.job.elastic.enabled:
            said = Noise(self._warm.noise.fileno()).text().decode(errors="replace")  # it may tell why the import is fatal
            await self._tell(messages.LoadFailed(exit_code=int(ExitCode.LOST_WORKERS), reason=text, traceback=said))
        else:
            log.warning("%s; it is started again", text)
            self._warm = warmstart.start(self._boot.job.framework, self._boot.snapshots)
            await self.open()
            await self._tell(messages.Notice(event="warm_restarted", text=text))
        for worker in lost:
            await self._tell(messages.Exited(worker=worker, code=0, signal=int(signal.SIGKILL)))


class EmptyNursery:
    """That of an agent without slots: nobody is ever started here."""

    empty = True

    async def open(self) -> None: ...
    def start(self, order: messages.Start) -> None: ...
    def signal(self, worker: str, number: int) -> None: ...
    def clear(self) -> None: ...
    async def wait_empty(self, seconds: float) -> None: ...
    async def close(self) -> None: ...
