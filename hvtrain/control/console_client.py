"""Talking to a running job from another process: finds the job's door by its run directory, and knocks.

The launcher writes RUN/control.json for its user's eyes only: host, port, token, tls and pid. The token admits to
questions and to scaling, nothing else. The file is removed at the end; a launcher that was killed leaves it behind.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any, TypeVar

from hvtrain.control import messages
from hvtrain.control.client import Address, Link
from hvtrain.errors import EnvironmentNotReady, ProtocolError, UsageError
from hvtrain.report.rundir import RunDirectory

ANSWER_SECONDS = 10.0
"""How long the coordinator may take to answer."""

OVER = {"done", "stopped", "failed"}
"""States in status.json of a run whose launcher has ended in order."""

_AGAIN = "The command that started it goes on from what was saved."

Reply = TypeVar("Reply", bound=messages.Message)


def ask(run: Path, command: str, request: messages.Message, expect: type[Reply]) -> Reply:
    """Put a request to the job whose run directory is ``run``; returns its answer.

    Args:
        command: the name of the command that asks.

    Raises:
        UsageError: it is no run directory, the run is not running, or its launcher does not answer.
        ProtocolError: the answer is none of the type that is expected.
    """
    address, pid = find(run)
    try:
        reply = asyncio.run(asyncio.wait_for(_talk(address, command, request), ANSWER_SECONDS))
    except (EnvironmentNotReady, asyncio.TimeoutError, ConnectionError):
        reply = None
    if reply is None:
        raise UsageError(_unreachable(run, pid))
    if not isinstance(reply, expect):
        raise ProtocolError(f"expected {expect.__name__} from the launcher of {run}, got {type(reply).__name__}. Use "
                            "the version of hvtrain that the job runs with")
    return reply


def find(run: Path) -> tuple[Address, int]:
    """Where the coordinator of a run listens, and the process id of its launcher.

    Raises:
        UsageError: it is no run directory, the run is not running, or it is somebody else's.
    """
    directory = RunDirectory(run)
    if not directory.status.is_file():
        raise UsageError(f"{run} is not a run directory: it has no status.json. RUN is what run.dir says in the job "
                         "file; if it says nothing, look in runs/")
    try:
        door = json.loads(directory.control.read_text())
        address = Address(str(door["host"]), int(door["port"]), str(door["token"]), door.get("tls") is True)
        return address, int(door["pid"])
    except FileNotFoundError:
        raise UsageError(_not_running(run)) from None
    except PermissionError:
        raise UsageError(f"{directory.control} may be read only by the user who started the run. Run this command as "
                         "that user") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{directory.control} cannot be used ({type(error).__name__}: {error}). If the run has just "
                         "been started, try again") from None


async def _talk(address: Address, command: str, request: messages.Message) -> messages.Message | None:
    link = Link(address)
    try:
        await link.open(messages.ClientHello(command=command))
        await link.send(request)
        return await link.receive()
    finally:
        await link.close()


# Why there is no answer --------------------------------------------------------------------------------
def _not_running(run: Path) -> str:
    state, reason, step = _status(run)
    said = f"{state}: {reason}" if reason and reason != state else state
    if state in OVER:
        return f"{run} is not running. Its status.json says: {said}, at step {step}"
    if _alive(_lock_holder(run)):
        return f"{run} has only just been started, or is about to end; try again in a moment"
    return (f"{run} is not running. Its status.json still says: {said}, at step {step}, but its launcher is gone. "
            f"{_AGAIN}")


def _unreachable(run: Path, pid: int) -> str:
    if _alive(pid):
        return (f"the launcher of {run} (pid {pid}) does not answer. It may be stopped or about to end; if it was "
                "started on another host, ask there")
    state, _, step = _status(run)
    return (f"{run} is not running: its control.json is left over from a launcher (pid {pid}) that was killed. Its "
            f"status.json still says: {state}, at step {step}. {_AGAIN} If it runs on another host, ask there")


def _status(run: Path) -> tuple[str, str, Any]:
    """State, reason and step in status.json."""
    try:
        status = json.loads(RunDirectory(run).status.read_text())
        return str(status.get("state", "unknown")), str(status.get("reason", "")), status.get("step", 0)
    except (OSError, ValueError, AttributeError):
        return "unknown", "", 0


def _lock_holder(run: Path) -> int:
    """The process id that the lock of the run directory names; 0 if it names none."""
    try:
        return int((run / ".lock").read_text())
    except (OSError, ValueError):
        return 0


def _alive(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True  # somebody else's
    return True
