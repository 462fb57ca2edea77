"""Asking a program of the user's which hosts there are (Horovod's ``--host-discovery-script``)."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
from typing import Callable

from hvtrain.errors import EnvironmentNotReady, UsageError
from hvtrain.launch import hosts
from hvtrain.launch.hosts import HostSlots

SCRIPT_SECONDS = 30.0
"""A script that takes longer is ended, and counts as failed."""

MOST_BYTES = 1 << 20
"""Nobody has so many hosts; what comes after that is not looked at."""


class Script:
    """``command``: what to run, a path or a command line."""

    def __init__(self, command: str):
        self.command = command
        self._arguments = [os.path.abspath(command)] if os.path.exists(command) else shlex.split(command)
        self._failed = ""

    async def look(self) -> tuple[HostSlots, ...]:
        """The hosts that there are now.

        Raises:
            EnvironmentNotReady: it cannot be run, fails, or takes longer than SCRIPT_SECONDS.
            UsageError: what it prints is no list of hosts.
        """
        try:
            process = await asyncio.create_subprocess_exec(
                *self._arguments, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE, start_new_session=True)
        except (OSError, IndexError) as error:
            reason = getattr(error, "strerror", None) or "it names no program"
            advice = "" if not isinstance(error, PermissionError) else f" (chmod +x {self._arguments[0]})"
            raise EnvironmentNotReady(
                f"the host discovery script {self.command} cannot be run: {reason}{advice}.") from None
        try:
            said, errors = await asyncio.wait_for(process.communicate(), SCRIPT_SECONDS)
        except asyncio.TimeoutError:
            raise EnvironmentNotReady(
                f"the host discovery script {self.command} was not done after {SCRIPT_SECONDS:g} s.") from None
        finally:
            _end(process)
        if process.returncode:
            last = (errors.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
            raise EnvironmentNotReady(f"the host discovery script {self.command} failed with exit code "
                                      f"{process.returncode}: {last}.")
        return hosts.of_script(said[:MOST_BYTES].decode(errors="replace"), self.command)

    async def look_again(self, complain: Callable[[str], None]) -> tuple[HostSlots, ...] | None:
        """As :meth:`look`, but a script that fails changes nothing: None. It is complained of once."""
        try:
            found = await self.look()
        except (EnvironmentNotReady, UsageError) as error:
            if str(error) != self._failed:
                self._failed = str(error)
                complain(f"{error} The hosts stay as they are.")
            return None
        self._failed = ""
        return found


def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
