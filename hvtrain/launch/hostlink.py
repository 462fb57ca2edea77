"""The launcher's end of its process on a host (:mod:`.hostmain`), over ssh or directly."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections import deque
from typing import Any, Callable, Sequence

from hvtrain.control.warmstart import SECRETS
from hvtrain.launch import hostwire

KEPT_LINES = 50
"""Of what was said before the host answered: there stands why it did not."""

GOODBYE_SECONDS = 2.0
"""How long a process may take to end once its input is closed."""

MOST_MESSAGES = 1000
"""A host that says more than is asked of it is not listened to any more."""


class Silent(Exception):
    """The process has ended, or does not answer in time. ``code``: its exit code; None if it lives."""

    def __init__(self, code: int | None):
        self.code = code
        super().__init__(f"exit code {code}" if code is not None else "no answer in time")


class HostLink:
    """A process on a host, started with ``arguments``; lines that it prints go to ``show``."""

    def __init__(self, arguments: Sequence[str], show: Callable[[str], None]):
        self._arguments, self._show = list(arguments), show
        self.nonce = secrets.token_hex(16)
        self.said: deque[str] = deque(maxlen=KEPT_LINES)
        self._answered = False
        self._messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue(MOST_MESSAGES)
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task | None = None

    async def open(self) -> None:
        """Start the process. Raises OSError."""
        # A session of its own keeps the terminal's Ctrl-C to the launcher, and ssh from asking at the terminal.
        self._process = await asyncio.create_subprocess_exec(
            *self._arguments, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE, start_new_session=True,
            env={name: value for name, value in os.environ.items() if name not in SECRETS})
        self._reading = asyncio.create_task(self._read())

    def tell(self, **message: Any) -> None:
        """Send a message; to nobody, if the process has ended."""
        assert self._process is not None and self._process.stdin is not None
        if self._process.returncode is None and not self._process.stdin.is_closing():
            self._process.stdin.write(hostwire.request(message))

    async def ask(self, answer: str, seconds: float, **message: Any) -> dict[str, Any]:
        """Send a message and wait for the ``answer`` of that name. Raises Silent."""
        self.tell(**message)
        try:
            return await asyncio.wait_for(self._of_kind(answer), seconds)
        except asyncio.TimeoutError:
            raise Silent(None) from None

    async def hear(self) -> dict[str, Any]:
        """The next message. Raises Silent once the process has ended and has said nothing more."""
        assert self._reading is not None and self._process is not None
        getting = asyncio.create_task(self._messages.get())
        try:
            await asyncio.wait([getting, self._reading], return_when=asyncio.FIRST_COMPLETED)
            if getting.done():
                return getting.result()
            if not self._messages.empty():
                return self._messages.get_nowait()
        finally:
            getting.cancel()
        raise Silent(await self._process.wait())

    async def close(self) -> None:
        """End the process: at once, if it does not end by itself when its input does."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), GOODBYE_SECONDS)
        except asyncio.TimeoutError:
            pass
        self.cut()
        await self._process.wait()
        if self._reading is not None:
            self._reading.cancel()

    def cut(self) -> None:
        """Kill the process here: ssh, say, whose connection has died."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def _of_kind(self, kind: str) -> dict[str, Any]:
        while True:
            message = await self.hear()
            if message["op"] == "failed":
                raise Silent(None)
            if message["op"] == kind:
                return message

    async def _read(self) -> None:
        assert self._process is not None and self._process.stdout is not None and self._process.stderr is not None
        await asyncio.gather(self._read_stream(self._process.stdout), self._read_stream(self._process.stderr))

    async def _read_stream(self, stream: asyncio.StreamReader) -> None:
        lines = hostwire.Lines()
        while data := await stream.read(1 << 16):
            for line in lines.feed(data):
                message = hostwire.read_reply(self.nonce, line)
                if message is not None:
                    self._answered = True
                    if self._messages.full():
                        self.cut()
                        return
                    self._messages.put_nowait(message)
                elif line.strip():
                    self._print(line.decode(errors="replace"))
        rest = lines.feed(b"\n")
        for line in rest:
            if line.strip():
                self._print(line.decode(errors="replace"))

    def _print(self, line: str) -> None:
        """Greetings of a shell are of interest only if nothing comes after them."""
        self.said.append(line)
        if self._answered:
            self._show(line)
