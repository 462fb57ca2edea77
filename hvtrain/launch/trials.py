"""Processes that measure a model (hvtrain.hybrid.measuring), one or several at the same time.

::

    this process   start all    r r        g g    r r        g g     answers
    process 0      import ----->|(gate)...|measure|(gate)..|measure optimizer -> answer
    process 1      import, build -->|.....|measure -->|....|measure optimizer -> answer

At a gate each says that it is ready (r), and all go on (g) when all have come.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from typing import IO, Sequence

from hvtrain.control.warmstart import KEEP_MEMORY, SECRETS, SHARE_CORES
from hvtrain.errors import EnvironmentNotReady, HvtrainError, Uncuttable, UserCodeError
from hvtrain.hybrid.measurement import Measurement
from hvtrain.hybrid.measuring import Request

SECONDS = 600.0
"""How long a measurement may take; it is a few passes of a few micro-batches."""

TAIL = 20
"""So many of the last lines of what a process has written are shown if it ended without an answer."""


class MeasurementFailed(HvtrainError):
    """The model could not be measured; the exit code is that of the reason."""

    def __init__(self, message: str, code: int):
        self.exit_code = code
        super().__init__(message)


def measure(requests: Sequence[Request]) -> list[Measurement]:
    """Have each of ``requests`` answered by a process of its own, all at the same time; the answers come in any order.

    Raises:
        EnvironmentNotReady: a process ends without an answer, or not in time.
        Uncuttable: the model must be cut and cannot.
        UserCodeError, MeasurementFailed: it answers that it cannot.
    """
    until = time.monotonic() + SECONDS
    trials: list[_Trial] = []
    try:
        for request in requests:
            trials.append(_Trial(request))
        while all(ready := [trial.is_ready(until) for trial in trials]):
            for trial in trials:
                trial.go()
        for trial in trials:  # who still waits for one that has ended is told so
            trial.close()
        order = sorted(range(len(trials)), key=ready.__getitem__)  # who has ended first knows why
        return [trials[number].answer(until) for number in order]
    finally:
        for trial in trials:
            trial.end()


class _Trial:
    """One process that measures."""

    def __init__(self, request: Request):
        own = {name: value for name, value in os.environ.items() if name not in SECRETS}
        environment = {**KEEP_MEMORY, **SHARE_CORES, **own, "OPENBLAS_NUM_THREADS": "1"}
        # The answer comes in a file: one of a thousand layers would fill a pipe before anybody reads it.
        self._noise, self._answer, said = tempfile.TemporaryFile(), tempfile.TemporaryFile(), tempfile.TemporaryFile()
        said.write(json.dumps(request.to_json()).encode())
        said.seek(0)
        self._ready, ready = os.pipe()
        go, self._go = os.pipe()
        given = self._answer.fileno(), ready, go
        command = [sys.executable, "-m", "hvtrain.hybrid.measuring", str(given[0]), str(os.getpid()), str(ready), str(go)]
        try:
            self._process = subprocess.Popen(command, stdin=said, stdout=self._noise, stderr=self._noise, pass_fds=given,
                                             env=environment)
        finally:
            said.close()
            os.close(ready)
            os.close(go)

    def is_ready(self, until: float) -> bool:
        """Wait until it stands at a gate; False where it has ended instead, or time is over."""
        # Processes that the task has started may hold the pipe open when it has ended.
        ended = os.pidfd_open(self._process.pid)
        try:
            waiting, _, _ = select.select([self._ready, ended], [], [], max(0.0, until - time.monotonic()))
            return self._ready in waiting and bool(os.read(self._ready, 1))
        finally:
            os.close(ended)

    def go(self) -> None:
        """Open the gate."""
        with suppress(BrokenPipeError):  # it has ended meanwhile; its answer will tell
            os.write(self._go, b".")

    def close(self) -> None:
        """No gate will be opened any more."""
        if self._go >= 0:
            os.close(self._go)
            self._go = -1

    def answer(self, until: float) -> Measurement:
        """What it has found. Raises as :func:`measure`."""
        try:
            code = self._process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise EnvironmentNotReady(f"the model was not measured within {SECONDS:g} s. Set hybrid.stages, "
                                      "hybrid.microbatches and hybrid.split, so that nothing has to be measured.") from None
        said = _text(self._answer)
        if not said:
            last = _text(self._noise).splitlines()[-TAIL:]
            head = f"the process that measures the model ended without an answer (status {code})."
            raise EnvironmentNotReady("\n".join([f"{head} Its last lines:", *(f"  {line}" for line in last)]))
        return _read(said)

    def end(self) -> None:
        """Nothing of it remains."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self.close()
        os.close(self._ready)
        self._noise.close()
        self._answer.close()


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _read(said: str) -> Measurement:
    answer = json.loads(said)
    if "measurement" in answer:
        return Measurement.from_json(answer["measurement"])
    if answer.get("uncuttable"):
        raise Uncuttable(answer["reason"])
    reason = f"the model could not be measured: {answer['reason']}"
    if answer["traceback"]:
        raise UserCodeError(reason, answer["traceback"])
    raise MeasurementFailed(reason, answer["exit_code"])
