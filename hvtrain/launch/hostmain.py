"""The launcher's process on a host: ``python -m hvtrain.launch.hostmain``, started by ssh (:mod:`.hostwire`).

It says what the host has, then starts the host's agent and stays beside it. If the connection to the launcher is lost,
the agent goes on: whether it still belongs to the job is between it and the coordinator. A launcher that comes again
finds it (:mod:`.leftover`).

::

    launcher --ssh-- hostmain --pipe-- agent -- warm process -- workers
                        ^
    launcher --ssh-- hostmain     (later: its input and output are led to the first one)
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

from hvtrain.launch import hostwire, leftover

HELLO_SECONDS = 60.0
"""A launcher that has said nothing by then has gone."""

MOST_WAITING = 1 << 20
"""Bytes for a launcher that takes nothing; beyond that, what programs here print is dropped."""

CHUNK = 1 << 16


class HostProcess:
    """This process."""

    def __init__(self) -> None:
        self._nonce, self._name, self._framework, self._cwd = "", "", "", "/"
        self._up: asyncio.StreamWriter | None = None  # the way to the launcher
        self._agent: asyncio.subprocess.Process | None = None
        self._told = False  # whether the agent knows its job
        self._listener: Any = None
        self._over = asyncio.Event()

    async def run(self) -> None:
        """Serve until there is neither an agent nor a launcher."""
        reader = await _standard_input()
        self._up = await _standard_output()
        try:
            first = await asyncio.wait_for(reader.readline(), HELLO_SECONDS)
        except asyncio.TimeoutError:
            return
        if not first:
            return
        hello = json.loads(first)
        self._nonce, self._name = hello["nonce"], hello["job"]
        self._framework, self._cwd = hello["framework"], hello["cwd"]
        os.environ.update(hello["environment"])
        alone = await self._claim()
        if alone:
            await self._start_agent()
        self._say(op="report", leftover=not alone, **await asyncio.to_thread(_examine, hello))
        serving = asyncio.create_task(self._serve(reader))
        await self._over.wait()
        serving.cancel()
        await self._flush()

    # The launcher ----------------------------------------------------------------------------------------
    def _say(self, **message: Any) -> None:
        if self._up is not None:
            self._up.write(hostwire.reply(self._nonce, message))

    async def _flush(self) -> None:
        try:
            if self._up is not None:
                await asyncio.wait_for(self._up.drain(), leftover.END_SECONDS)
        except (OSError, asyncio.TimeoutError):
            pass

    async def _serve(self, reader: asyncio.StreamReader) -> None:
        """Do what the launcher says, until it is gone."""
        while line := await reader.readline():
            try:
                message = json.loads(line)
                await self._obey(message.get("op"), message, reader)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                self._say(op="failed", reason=f"{type(error).__name__}: {error}", number=_number(line))
        if not self._told:
            await self._dismiss()

    async def _obey(self, op: str, message: dict[str, Any], reader: asyncio.StreamReader) -> None:
        if op == "reach":
            self._reaching = asyncio.create_task(self._reach(message))  # what follows may be an order to end
        elif op == "listen":
            from hvtrain.launch.probing import Listener

            if self._listener is not None:
                self._listener.close()
            self._listener = Listener()
            found = await self._listener.open(filter(None, [message["address"]]))
            self._say(op="listening", targets=[target.packed() for target in found], number=message.get("number"))
        elif op == "agent":
            await self._tell_agent(message["record"])
        elif op == "watch":
            await self._follow(reader)
        elif op == "ping":
            self._say(op="alive")
        elif op == "kill":
            await self._kill()

    async def _reach(self, message: dict[str, Any]) -> None:
        from hvtrain.launch.probing import Target, reach

        number = message.get("number")
        try:
            self._say(op="reached", by=await reach([Target(*target) for target in message["targets"]]), number=number)
        except Exception as error:  # noqa: BLE001 - somebody waits for an answer
            self._say(op="failed", reason=f"{type(error).__name__}: {error}", number=number)

    # The agent -------------------------------------------------------------------------------------------
    async def _claim(self) -> bool:
        self._held = await leftover.claim(self._name, self._called)
        return self._held is not None

    async def _start_agent(self) -> None:
        """It imports the framework while the hosts are still being looked at."""
        cwd = self._cwd if os.path.isdir(self._cwd) else "/"
        self._agent = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "hvtrain.control.agentmain", str(os.getpid()), self._framework, cwd=cwd,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            start_new_session=True)
        self._watching = asyncio.create_task(self._watch(self._agent))

    async def _tell_agent(self, record: dict[str, Any]) -> None:
        if self._listener is not None:
            self._listener.close()
        if self._agent is None:  # there is one that did not come back to the coordinator
            await leftover.end(self._name)
            if not await self._claim():
                self._say(op="failed", reason="a former agent of this job does not end there")
                return
            await self._start_agent()
        assert self._agent is not None and self._agent.stdin is not None
        self._told = True
        self._agent.stdin.write(json.dumps(record).encode())
        self._agent.stdin.close()
        self._say(op="started", pid=self._agent.pid)

    async def _watch(self, agent: asyncio.subprocess.Process) -> None:
        """Pass on what it and its warm process print, until it has ended."""
        assert agent.stdout is not None
        relay = asyncio.create_task(self._relay(agent.stdout))
        code = await agent.wait()
        await asyncio.wait([relay], timeout=1.0)
        relay.cancel()
        self._say(op="ended", code=code)
        self._over.set()

    async def _relay(self, stream: asyncio.StreamReader) -> None:
        while data := await stream.read(CHUNK):
            if self._up is not None and self._up.transport.get_write_buffer_size() < MOST_WAITING:
                self._up.write(data)

    async def _dismiss(self) -> None:
        """The agent is not needed after all; it need not import anything any more."""
        if self._agent is None:
            self._over.set()
        await self._kill()

    async def _kill(self) -> None:
        if self._agent is not None and self._agent.returncode is None:
            self._agent.kill()

    # Another launcher process, here for the same agent ------------------------------------------------------
    async def _called(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve the process of a launcher that has come again."""
        word, _, nonce = (await reader.readline()).decode().strip().partition(" ")
        if word == "end":
            await self._kill()
            await self._over.wait()
        elif word == "watch":
            self._nonce, self._up = nonce, writer
            self._say(op="started", pid=self._agent.pid if self._agent is not None else 0)
            await self._serve(reader)
            if self._up is writer:
                self._up = None

    async def _follow(self, reader: asyncio.StreamReader) -> None:
        """Lead this process's input and output to the one that has the agent."""
        there = await leftover.connect(self._name)
        if there is None:
            self._say(op="ended", code=-1)
            self._over.set()
            return
        its_output, its_input = there
        its_input.write(f"watch {self._nonce}\n".encode())

        async def forward() -> None:
            while data := await reader.read(CHUNK):
                its_input.write(data)
            self._over.set()

        forwarding = asyncio.create_task(forward())
        while data := await its_output.read(CHUNK):
            if self._up is not None and self._up.transport.get_write_buffer_size() < MOST_WAITING:
                self._up.write(data)
        forwarding.cancel()
        self._over.set()


def _number(line: bytes) -> int | None:
    """Of the question in a line that cannot be obeyed."""
    try:
        return json.loads(line).get("number")
    except (ValueError, AttributeError):
        return None


def _examine(hello: dict[str, Any]) -> dict[str, Any]:
    from hvtrain.launch import hostcheck

    return hostcheck.examine(hello)


async def _standard_input() -> asyncio.StreamReader:
    reader = asyncio.StreamReader(limit=hostwire.MOST_BYTES)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


async def _standard_output() -> asyncio.StreamWriter:
    """Never waited for: a network that takes nothing must not stop the agent."""
    loop = asyncio.get_running_loop()
    out = os.fdopen(os.dup(1), "wb", 0)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)  # nobody else here writes between our lines
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, out)
    return asyncio.StreamWriter(transport, protocol, None, loop)


if __name__ == "__main__":
    asyncio.run(HostProcess().run())
