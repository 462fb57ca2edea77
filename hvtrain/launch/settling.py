"""Settling what a job's ``hybrid`` section leaves to hvtrain, before workers start: stages, micro-batches, split.

::

    stages, split known, no limit of memory -------------------------> micro-batches: 4 for each stage
    else: RUN/profile.json, or a measurement ---> planner, for the machines that there are ---> all three
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Callable, Mapping

from hvtrain.config import Job
from hvtrain.config.hybrid import HybridConfig
from hvtrain.engine.machine import cores
from hvtrain.errors import Uncuttable, UsageError
from hvtrain.hybrid import splits
from hvtrain.hybrid.cluster import Cluster
from hvtrain.hybrid.measurement import Measurement
from hvtrain.hybrid.openings import is_settled, may_measure, stages_of, with_hybrid, without_measuring
from hvtrain.hybrid.planner import Choice, describe, duration, plan
from hvtrain.hybrid.prediction import Prediction
from hvtrain.launch import measurer

__all__ = ["Ground", "Settled", "adopt", "check_devices", "check_gpus", "chosen_threads", "is_settled", "may_measure",
           "settle", "stages_of", "threads_each"]

DEVICE = {"torch": r"(cuda|cpu)(:\d+)?", "keras": r"(cuda|gpu|cpu)(:\d+)?", "numpy": ".*"}
"""What a device's name looks like."""

MOST_THREAD_STAGES = 8
"""Stages that are tried on the processor beyond one for each core, where hybrid.memory asks for more devices."""


@dataclass(frozen=True)
class Ground:
    """Where the workers of a job are to be, as its launcher knows it.

    Args:
        workers: of the job; None where a group of ``slots`` makes one, as many as its stages.
        slots: on each host, where another launcher has given them.
        hosts: how many there are.
    """

    workers: int | None = 1
    slots: int | None = None
    hosts: int = 1

    def here(self, stages: int) -> int:
        """Workers on this host."""
        return self.workers or 1 if self.slots is None else max(1, self.slots // stages)


@dataclass(frozen=True)
class Settled:
    """``job`` with nothing left open; ``measurement`` and ``prediction`` where the model was measured for it."""

    job: Job
    measurement: Measurement | None = None
    prediction: Prediction | None = None

    @property
    def note(self) -> str:
        """For people: what was settled; empty if nothing was."""
        hybrid = self.job.hybrid
        if hybrid is None or self.prediction is None:
            return ""
        split = " + ".join(map(str, hybrid.split or ()))
        whole = f". {self.measurement.whole}" if self.measurement is not None and self.measurement.whole else ""
        return (f"{describe(self.prediction.shape)}, layers split as {split}; a step is expected to take "
                f"{duration(self.prediction.seconds)}{whole}")


def settle(job: Job, module_dir: str, ground: Ground, say: Callable[[str], None]) -> Settled:
    """``job`` with stages, micro-batches and split as numbers; itself if there is nothing to do.

    Raises:
        UsageError: the shape is impossible on this ground or for this model, or fits no memory.
        Uncuttable: the model cannot be cut into the stages that are asked for.
        and what :func:`hvtrain.launch.measurer.obtain` raises.
    """
    if job.hybrid is None:
        return Settled(job)
    stages = stages_of(job)
    check_devices(job, ground.here(stages or 1))
    if not may_measure(job):
        return Settled(without_measuring(job, ground.workers or ground.here(stages or 1) * ground.hosts))
    threads = threads_each(job, ground.here(stages or 1))
    workers = ground.workers or max(1, ground.hosts * ground.here(stages or 1))
    found = measurer.obtain(job, module_dir, workers=workers, threads=threads, must_be_cut=(stages or 1) > 1,
                            before=lambda: say("measuring the model, to cut it into stages ..."), say=say)
    if found.whole and (stages or 1) > 1:
        raise Uncuttable(found.whole)
    names = [layer.name for layer in found.costs.layers]
    if job.hybrid.split is not None:
        splits.check(job.hybrid.split, names)
    splits.check_stages(stages or 1, names)
    prediction = _plan(job, found, ground, stages, threads)
    shape = prediction.shape
    settled = with_hybrid(job, stages=shape.stages, microbatches=shape.microbatches, split=list(prediction.split))
    return Settled(settled, found, prediction)


def adopt(job: Job, section: Mapping[str, Any]) -> Job:
    """``job`` with the ``hybrid`` section as another process has settled it."""
    return job.model_copy(update={"hybrid": HybridConfig.model_validate(section)})


def check_devices(job: Job, workers_here: int) -> None:
    """Raise UsageError for devices that no framework knows, or where several workers of a host would use the same."""
    devices = job.hybrid.devices if job.hybrid is not None else "auto"
    for name in devices if isinstance(devices, list) else ():
        if not re.fullmatch(DEVICE[job.framework], name.strip().lower()):
            raise UsageError(f"hybrid.devices has {name!r}; with framework: {job.framework} a device is cpu, or cuda:0, "
                             "cuda:1 and so on")
    if isinstance(devices, list) and workers_here > 1 and any(not name.lower().startswith("cpu") for name in devices):
        raise UsageError(f"hybrid.devices: [{', '.join(devices)}] names the devices of one worker, but {workers_here} "
                         "workers are to run on this host, and all of them would take these. Leave it out (hybrid.devices=auto), so "
                         "that each takes the next ones, or start one worker on each host.")


def _plan(job: Job, found: Measurement, ground: Ground, stages: int | None, threads: int) -> Prediction:
    hybrid = job.hybrid
    assert hybrid is not None
    cpu = not found.gpus or hybrid.on_processor
    here = ground.here(stages or 1)
    memory = hybrid.memory.bytes if hybrid.memory is not None else None if cpu else found.memory
    spares = job.elastic.spares if ground.slots is None else 0  # elsewhere they are among the slots
    if not cpu:
        check_gpus(found.gpus, here, stages, spares)
    most = stages or _most(job, found, here + spares, threads, cpu)
    cluster = Cluster(nodes=ground.hosts, devices=ground.slots or most * here, memory=memory,
                      cores=min(cores(), threads * here) if cpu else None)
    counts = (stages,) if stages else tuple(range(1, most + 1)) if ground.slots is None else None
    given = hybrid.microbatches if isinstance(hybrid.microbatches, int) else None
    split = tuple(hybrid.split) if hybrid.split is not None else None
    choice = Choice(replicas=ground.workers, stages=counts, microbatches=given, split=split,
                    recompute=(hybrid.recompute,), codecs=(job.comm.codec,), schedule=hybrid.schedule)
    return plan(found.speeds, cluster, job.data.global_batch, choice).best


def check_gpus(gpus: int, workers_here: int, stages: int | None, spares: int = 0) -> None:
    """Raise UsageError where a host has fewer GPUs than the stages of its workers need, and of those that stand by."""
    need = (workers_here + spares) * (stages or 1)
    if gpus and need > gpus:
        each = f" and {spares} standing by (elastic.spares)" if spares else ""
        each += f" with {stages} stages each" if stages else ""
        fewer = max(0, gpus // (stages or 1) - spares)
        advice = f"Start {fewer} on this host (-np {fewer})" if fewer else f"Set hybrid.stages to at most {gpus}"
        who = f"{workers_here} worker{'s' if workers_here > 1 else ''}{each}"
        raise UsageError(f"{who} need {need} GPUs, this host has {gpus}. {advice}, or compute on the processor "
                         "(hybrid.devices=cpu).")


def _most(job: Job, found: Measurement, here: int, threads: int, cpu: bool) -> int:
    """Most stages that a worker could have."""
    if not cpu:
        return max(1, found.gpus // here)
    assert job.hybrid is not None
    return max(threads, MOST_THREAD_STAGES) if job.hybrid.memory is not None else threads


def chosen_threads(job: Job) -> int | None:
    """CPU threads of each worker, if the job says them."""
    return job.launch.threads if isinstance(job.launch.threads, int) else None


def threads_each(job: Job, workers_here: int) -> int:
    """CPU threads of each of ``workers_here`` workers on this host; its stages share them."""
    return chosen_threads(job) or max(1, cores() // workers_here)
