"""Having a job's model measured (hvtrain.hybrid.measuring), unless the run has a measurement that still holds."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import IO, Callable

from hvtrain.config import Job
from hvtrain.control.warmstart import KEEP_MEMORY, SHARE_CORES
from hvtrain.engine import machine
from hvtrain.errors import EnvironmentNotReady, HvtrainError, UserCodeError
from hvtrain.hybrid import measurement
from hvtrain.hybrid.measurement import Measurement, shared_part
from hvtrain.hybrid.measuring import Request

SECONDS = 600.0
"""How long a measurement may take; it is a few passes of a few micro-batches."""

TAIL = 20
"""So many of the last lines of what the process has written are shown if it ended without an answer."""

MICROBATCHES = 4
"""What a worker's share is cut into for the measurement where hybrid.microbatches says nothing."""


class MeasurementFailed(HvtrainError):
    """The model could not be measured; the exit code is that of the reason."""

    def __init__(self, message: str, code: int):
        self.exit_code = code
        super().__init__(message)


def obtain(job: Job, module_dir: str, *, workers: int, threads: int, fresh: bool = False,
           before: Callable[[], None] = lambda: None) -> Measurement:
    """The measurement of ``job``'s model: the run's own, if it has one that holds, or a new one.

    Args:
        workers: that share the global batch.
        threads: most that one of them may compute with, on the processor.
        fresh: measure even if there is one.
        before: called before a measurement begins; it takes some seconds.

    Raises:
        EnvironmentNotReady: the process that measures ends without an answer, or not in time.
        UserCodeError, MeasurementFailed: it answers that it cannot.
    """
    found = None if fresh else measurement.kept(job.run.dir, job, hardware())
    if found is not None:
        return found
    before()
    request = Request(job, module_dir, _samples(job, workers), gpu=job.hybrid is None or not job.hybrid.on_processor)
    found = replace(measure(request), key=measurement.key(job, hardware()))
    if threads == 1 or found.gpus:
        return found
    several = measure(replace(request, threads=threads))
    return replace(found, parallel=shared_part(found.costs, several.costs, threads))


def hardware() -> str:
    """What a measurement depends on of this machine, in words."""
    return "; ".join([f"{platform.machine()}, {machine.cores()} cores", *machine.gpus()])


def keep(run_dir: str | os.PathLike[str], found: Measurement) -> Path:
    """Write the measurement into the run's directory. Raises EnvironmentNotReady if that cannot be."""
    from hvtrain.report.rundir import write_atomically

    path = Path(run_dir) / measurement.FILE_NAME
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, found.to_json())
    except OSError as error:
        raise EnvironmentNotReady(f"the measurement cannot be kept in {path}: {error.strerror}. Choose another directory "
                                  "with run.dir=PATH.") from None
    return path


def _samples(job: Job, workers: int) -> int:
    share = -(-job.data.global_batch // workers)
    wanted = job.hybrid.microbatches if job.hybrid is not None else "auto"
    return max(1, -(-share // (wanted if isinstance(wanted, int) else MICROBATCHES)))


def measure(request: Request) -> Measurement:
    """Have it measured by a process of its own. Raises as :func:`obtain`."""
    environment = {**KEEP_MEMORY, **SHARE_CORES, **os.environ, "OPENBLAS_NUM_THREADS": "1"}
    # The answer comes in a file: one of a thousand layers would fill a pipe before anybody reads it.
    with tempfile.TemporaryFile() as noise, tempfile.TemporaryFile() as answer:
        command = [sys.executable, "-m", "hvtrain.hybrid.measuring", str(answer.fileno()), str(os.getpid())]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=noise, stderr=noise, pass_fds=[answer.fileno()],
                                   env=environment)
        try:
            process.communicate(json.dumps(request.to_json()).encode(), timeout=SECONDS)
        except subprocess.TimeoutExpired:
            raise EnvironmentNotReady(f"the model was not measured within {SECONDS:g} s. Set hybrid.stages, "
                                      "hybrid.microbatches and hybrid.split, so that nothing has to be measured.") from None
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        said = _text(answer)
        if not said:
            last = _text(noise).splitlines()[-TAIL:]
            head = f"the process that measures the model ended without an answer (status {process.returncode})."
            raise EnvironmentNotReady("\n".join([f"{head} Its last lines:", *(f"  {line}" for line in last)]))
    return _read(said)


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _read(said: str) -> Measurement:
    answer = json.loads(said)
    if "measurement" in answer:
        return Measurement.from_json(answer["measurement"])
    reason = f"the model could not be measured: {answer['reason']}"
    if answer["traceback"]:
        raise UserCodeError(reason, answer["traceback"])
    raise MeasurementFailed(reason, answer["exit_code"])
