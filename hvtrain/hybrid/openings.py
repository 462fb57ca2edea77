"""What a job's ``hybrid`` section leaves open, and what of it follows from the rest without a measurement.

::

    split ----------> stages                           split: None, or a limit of memory: the model has to be measured
    devices --------> stages
    split, batch ---> micro-batches: 4 for each stage, no more than a worker has samples
"""

from __future__ import annotations

from typing import Any

from hvtrain.config import Job
from hvtrain.config.hybrid import HybridConfig
from hvtrain.errors import UsageError

MICROBATCHES_EACH = 4
"""Micro-batches for each stage where nothing is measured: the pipeline then stands idle for a fifth of the time."""


def stages_of(job: Job) -> int | None:
    """The number of stages that ``job`` asks for, in whichever way; None for auto."""
    hybrid = job.hybrid
    if hybrid is None:
        return 1
    if hybrid.split is not None:
        return len(hybrid.split)
    if isinstance(hybrid.devices, list):
        return len(hybrid.devices)
    return hybrid.stages if isinstance(hybrid.stages, int) else None


def is_settled(job: Job) -> bool:
    """Whether a worker could start with ``job``."""
    hybrid = job.hybrid
    return hybrid is None or (isinstance(hybrid.stages, int) and isinstance(hybrid.microbatches, int)
                              and hybrid.split is not None)


def may_measure(job: Job) -> bool:
    """Whether ``job`` needs a measurement of its model: a split to find, or one to hold against the memory."""
    hybrid = job.hybrid
    return hybrid is not None and (hybrid.split is None or hybrid.memory is not None)


def without_measuring(job: Job, workers: int) -> Job:
    """``job`` with nothing left open for so many ``workers``, which share the global batch.

    Raises UsageError where that takes a measurement, which only a job file's task can have.
    """
    if job.hybrid is None:
        return job
    if may_measure(job):
        raise unsettled(job.hybrid)
    stages = stages_of(job)
    assert stages is not None  # the split tells
    few = 1 if stages == 1 else min(-(-job.data.global_batch // workers), MICROBATCHES_EACH * stages)
    given = job.hybrid.microbatches
    return with_hybrid(job, stages=stages, microbatches=given if isinstance(given, int) else few)


def with_hybrid(job: Job, **values: Any) -> Job:
    """``job`` with ``values`` in its ``hybrid`` section."""
    assert job.hybrid is not None
    return job.model_copy(update={"hybrid": job.hybrid.model_copy(update=values)})


def unsettled(hybrid: HybridConfig) -> UsageError:
    """Says what is to be written down where nothing is measured."""
    split = list(hybrid.split) if hybrid.split is not None else None
    reason = (f"hybrid.memory is {hybrid.memory}, and whether stages fit that is known by measuring the model"
              if split is not None and hybrid.memory is not None else
              "hybrid.stages, hybrid.microbatches and hybrid.split must be settled before a worker starts, got "
              f"{hybrid.stages}, {hybrid.microbatches} and {split}; that is done by measuring the model")
    advice = "leave hybrid.memory out" if split is not None and hybrid.memory is not None else (
        "write the numbers down, for instance {stages: 2, split: [3, 4], microbatches: 8} for a model of 7 layers; a "
        "split that does not fit is answered with the names of the layers")
    return UsageError(f"{reason}, which `hvtrain run` does for the task of a job file, but hvtrain.Trainer cannot do "
                      f"for the task of a script. There, {advice}. `hvtrain plan CONFIG` recommends all three for a "
                      "job file.")
