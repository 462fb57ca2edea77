"""Starting ``hvtrain run`` as a command of its own, and waiting for its end within a limit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Sequence

from hvtrain.control.process import die_with_parent

STOP_SECONDS = 30.0
"""How long a run that was told to stop may take before it is killed."""


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (negative: the signal), and after how many seconds."""

    code: int
    seconds: float
    late: bool = False  # it was stopped because it exceeded its limit


def run(arguments: Sequence[str], output: Path, limit: float) -> Ended:
    """Run ``hvtrain ARGUMENTS`` with its output in a file, for at most ``limit`` seconds.

    It does not outlive this process.
    """
    command = [sys.executable, "-m", "hvtrain.cli.main", *arguments]
    started = time.monotonic()
    with open(output, "wb") as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                                   preexec_fn=partial(die_with_parent, os.getpid()))
        late = False
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            late = True
        finally:
            _end(process)  # also when this process was interrupted
    return Ended(process.returncode, round(time.monotonic() - started, 2), late)


def _end(process: subprocess.Popen) -> None:
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(STOP_SECONDS)
