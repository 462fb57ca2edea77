"""Having a job's model measured (hvtrain.hybrid.measuring), unless the run has a measurement that still holds."""

from __future__ import annotations

import os
import platform
from dataclasses import replace
from pathlib import Path
from typing import Callable

from hvtrain.config import Job
from hvtrain.engine import machine
from hvtrain.errors import EnvironmentNotReady, HvtrainError
from hvtrain.hybrid import measurement
from hvtrain.hybrid.costs import ModelCosts
from hvtrain.hybrid.measurement import Measurement
from hvtrain.hybrid.measuring import ROOM, Request
from hvtrain.hybrid.speeds import Speeds, slowest
from hvtrain.launch import trials

SECONDS = 3 * trials.SECONDS
"""How long all of it may take: with one thread, with all of a worker's, and several processes at once."""

MOST_AT_ONCE = 4
"""Processes that measure at the same time, at most. With two they show already that they share the memory's bandwidth."""

PROCESS = 500 * 10**6
"""Bytes that a process with a framework takes before it has a model, about."""

MICROBATCHES = 4
"""What a worker's share is cut into for the measurement where hybrid.microbatches says nothing."""


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
    gpu = job.hybrid is None or not job.hybrid.on_processor
    request = Request(job, module_dir, sizes(job, workers), gpu=gpu)
    (found,) = trials.measure([request])
    found = replace(found, key=measurement.key(job, hardware()))
    if found.gpus:
        return found
    try:
        return replace(found, speeds=_refined(found, request, threads))
    except HvtrainError:  # too little memory for several at once, perhaps; what one thread alone takes is known
        return found


def _refined(found: Measurement, request: Request, threads: int) -> Speeds:
    """What the model also takes with all ``threads``, and while others compute. Raises as :func:`trials.measure`."""
    speeds = found.speeds
    request = replace(request, sizes=tuple(costs.batch for costs in speeds.alone))
    if threads > 1:
        (threaded,) = trials.measure([replace(request, threads=threads)])
        speeds = replace(speeds, threaded=threaded.speeds.alone, threads=threads)
    at_once = _at_once(found.costs, machine.cores())
    if at_once > 1:  # as stages and replicas do
        each = max(1, min(threads, machine.cores() // at_once))
        answers = trials.measure([replace(request, threads=each, at_once=at_once)] * at_once)
        speeds = replace(speeds, beside=slowest([answer.speeds.alone for answer in answers]), at_once=at_once, each=each)
    return speeds


def _at_once(costs: ModelCosts, cores: int) -> int:
    """Processes that measure at the same time: as many as ``cores`` allow and memory holds.

    Each has weights, gradients, their sums, the weights' copies and the optimizer's state, and activations.
    """
    size = sum(layer.parameters for layer in costs.layers)
    need = PROCESS + size * (5 + 2 * costs.state) + sum(layer.saved + layer.output for layer in costs.layers)
    return max(1, min(MOST_AT_ONCE, cores, int(ROOM * machine.memory_free() / need)))


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


def sizes(job: Job, workers: int) -> tuple[int, ...]:
    """Samples of the micro-batches that are measured, ascending: a usual one, a quarter of it and four times as many, as far
    as a worker's share of the global batch goes."""
    share = -(-job.data.global_batch // workers)
    wanted = job.hybrid.microbatches if job.hybrid is not None else "auto"
    usual = max(1, -(-share // (wanted if isinstance(wanted, int) else MICROBATCHES)))
    few = {max(2, usual // 4)} if usual > 3 else set()  # normalisation needs two samples
    return tuple(sorted({usual, min(share, 4 * usual), *few}))
