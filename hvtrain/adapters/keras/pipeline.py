"""The task's own ``tf.data`` pipeline, over one batch at a time."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from hvtrain.errors import UserCodeError
from hvtrain.task import Task


def used(task: Task) -> bool:
    """Whether ``task`` has a pipeline."""
    return getattr(type(task), "pipeline", Task.pipeline) is not Task.pipeline


def through(task: Task, batch: Any, split: str, seed: tf.Tensor) -> Any:
    """What ``task.pipeline`` makes of ``batch``, eagerly or in a graph.

    Raises:
        UserCodeError: it gave no dataset. (That it holds one batch, TensorFlow checks when it runs.)
    """
    if not used(task):
        return batch
    batch = tuple(batch) if isinstance(batch, list) else batch  # to tf.data a list is one tensor
    made = task.pipeline(tf.data.Dataset.from_tensors(batch), split, seed)
    if not isinstance(made, tf.data.Dataset):
        raise UserCodeError(f"Task.pipeline gave a {type(made).__name__}; it must give a tf.data.Dataset with one "
                            "batch")
    return made.get_single_element()
