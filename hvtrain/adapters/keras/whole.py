"""Where a model computes: all of it on one device. :class:`hvtrain.hybrid.keras.staged.Staged` has it in stages."""

from __future__ import annotations

from typing import Any, Protocol, Sequence

import keras
import tensorflow as tf

from hvtrain.adapters.keras.steps import Steps
from hvtrain.config import Job
from hvtrain.task import Task


class Layout(Protocol):
    """How a model lies on devices."""

    needs_example: bool
    """Whether :meth:`lay` has to see a batch."""

    def lay(self, task: Task, model: keras.Model, batch: Any) -> None:
        """Put the variables of a built ``model`` where they belong, before anything is traced with them."""

    def stages(self, variables: Sequence[Any]) -> list[int]:
        """In which stage each of ``variables`` lies."""

    def steps(self, *parts: Any) -> Steps:
        """The traced parts of a step; ``parts`` are the arguments of :class:`hvtrain.adapters.keras.steps.Steps`."""


class Whole:
    """A model on one device."""

    needs_example = False

    def __init__(self, threads: int, local_rank: int):
        take_devices(threads, local_rank)

    def lay(self, task: Task, model: keras.Model, batch: Any) -> None:
        pass

    def stages(self, variables: Sequence[Any]) -> list[int]:
        return [0] * len(variables)

    def steps(self, *parts: Any) -> Steps:
        return Steps(*parts)


def layout(job: Job, threads: int, local_rank: int) -> Layout:
    """As ``job.hybrid`` says, with its devices made ready. Only before TensorFlow's first operation."""
    if job.hybrid is None:
        return Whole(threads, local_rank)
    from hvtrain.hybrid.keras.staged import Staged

    return Staged(job, threads, local_rank)


def take_devices(threads: int, local_rank: int) -> None:
    """Have TensorFlow use ``threads`` threads, and one of the host's GPUs. Only before its first operation."""
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1 if threads == 1 else 2)
        gpus = tf.config.list_physical_devices("GPU")
        if gpus:
            tf.config.set_visible_devices(gpus[local_rank % len(gpus)], "GPU")
            tf.config.experimental.set_memory_growth(gpus[local_rank % len(gpus)], True)
    except RuntimeError:  # TensorFlow is at work already, in a process of the user's own
        pass
