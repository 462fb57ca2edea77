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


def obtain(job: Job, module_dir: str, *, workers: int, threads: int, must_be_cut: bool = False, fresh: bool = False,
           before: Callable[[], None] = lambda: None, say: Callable[[str], None] = lambda text: None) -> Measurement:
    """The measurement of ``job``'s model: the run's own, if it has one that holds and serves, or a new one.

    Args:
        workers: that share the global batch.
        threads: most that one of them may compute with, on the processor.
        must_be_cut: do not measure a model as one layer that cannot be cut; the run may have such a measurement already.
        fresh: measure even if there is one.
        before: called before a measurement begins; it takes some seconds.
        say: told what could not be measured, where the rest is good enough to go on.

    Raises:
        EnvironmentNotReady: the process that measures ends without an answer, or not in time.
        Uncuttable: the model must be cut and cannot.
        UserCodeError, MeasurementFailed: it answers that it cannot.
    """
    wanted = sizes(job, workers)
    found = None if fresh else measurement.kept(job.run.dir, job, hardware())
    if found is not None:
        if found.serves(wanted, threads):
            return found
        # What it was made for stays within reach, so that two commands in turns do not measure every time.
        wanted, threads = tuple(sorted({*wanted, *found.sizes})), max(threads, found.threads)
    before()
    gpu = job.hybrid is None or not job.hybrid.on_processor
    request = Request(job, module_dir, wanted, gpu=gpu, must_be_cut=must_be_cut)
    (found,) = trials.measure([request])
    found = replace(found, key=measurement.key(job, hardware()), sizes=wanted, threads=threads)
    return found if found.gpus else replace(found, speeds=_refined(found, request, threads, say))


def _refined(found: Measurement, request: Request, threads: int, say: Callable[[str], None]) -> Speeds:
    """What the model also takes with all ``threads``, and while all cores compute; as far as it can be found out."""
    speeds, cores = found.speeds, machine.cores()
    request = replace(request, sizes=tuple(costs.batch for costs in speeds.alone))
    at_once = _at_once(found.costs, cores)
    each = max(1, cores // at_once)  # fewer would have to be scaled up to what all cores do, and their noise with them
    if (most := max(threads, each)) > 1 and (answers := _try([replace(request, threads=most)], say)):
        speeds = replace(speeds, threaded=answers[0].speeds.alone, threads=most)
    # As stages and replicas do:
    if at_once > 1 and (answers := _try([replace(request, threads=each, at_once=at_once)] * at_once, say)):
        speeds = replace(speeds, beside=slowest([answer.speeds.alone for answer in answers]), at_once=at_once, each=each)
    return speeds


def _try(requests: list[Request], say: Callable[[str], None]) -> list[Measurement]:
    """The answers to ``requests``, or none: what one thread alone takes is known, and is not given up for the rest."""
    try:
        return trials.measure(requests)
    except HvtrainError as error:  # too little memory, perhaps
        alike = f"{len(requests)} processes at once" if len(requests) > 1 else f"{requests[0].threads} threads"
        say(f"what the model takes with {alike} could not be measured, so times are less certain: {error}")
        return []


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
