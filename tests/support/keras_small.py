"""One rank's Keras adapter on a small task, driven step by step, without a loop."""

from __future__ import annotations

import hashlib
import json
import threading
from typing import Any, Callable, Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

from hvtrain import Job, Task
from hvtrain.adapters.base import Reduced
from hvtrain.adapters.keras.adapter import KerasAdapter
from hvtrain.engine.world import SoloWorld, World

SAMPLES = 12
_TRACING = threading.Lock()
"""Keras says that it is not safe with threads; ranks of a test that are threads build one after the other."""


def rows(data: Any, places: Any) -> Any:
    """The samples at ``places`` of arrays in a structure."""
    return tf.nest.map_structure(lambda array: array[places], data)


def squares(outputs: Any, batch: Any) -> tf.Tensor:
    """The loss of each sample: the sum of its squared outputs."""
    return tf.add_n([tf.reduce_sum(tf.reshape(tf.square(tf.cast(part, tf.float32)), [tf.shape(part)[0], -1]), 1)
                     for part in tf.nest.flatten(outputs)])


class Small(Task):
    """``make()`` on ``data``, arrays in a structure; ``loss(outputs, batch)`` is :func:`squares` unless given."""

    def __init__(self, make: Callable[[], keras.Model], data: Any, loss: Callable = squares, **more: Any):
        self.make, self.arrays, self.its_loss = make, data, loss
        vars(self).update(more)

    def model(self) -> keras.Model:
        return self.make()

    def data(self, split: str) -> Any:
        raise AssertionError("these tests give batches themselves")

    def loss(self, outputs: Any, batch: Any) -> tf.Tensor:
        return self.its_loss(outputs, batch)


class Rank:
    """An adapter of a ``world`` whose ranks share each step's samples evenly."""

    def __init__(self, task: Small, world: World | None = None, **sections: Any):
        settings = {"framework": "keras", "task": {"target": "t:T"}, "optim": {"name": "sgd", "lr": 0.05}, **sections}
        self.task, self.world, self.step = task, world or SoloWorld(), 0
        self.metrics: Mapping[str, float] = {}
        self.adapter = KerasAdapter(Job.model_validate(settings), task, threads=1)
        with _TRACING:
            self.adapter.build()
            self.adapter.warm_up(lambda: (rows(task.arrays, slice(0, 4)), 4))
        self.adapter.join(self.world)

    def gradients(self, pieces: Sequence[Any] | None = None, total: int = SAMPLES) -> Reduced:
        """``pieces`` are this rank's micro-batches, as places in the data; else one, its even share."""
        share = SAMPLES // self.world.size
        pieces = [np.arange(SAMPLES)[self.world.rank * share:][:share]] if pieces is None else pieces
        self.adapter.seed(self.step)
        return self.adapter.gradients([rows(self.task.arrays, piece) for piece in pieces], [len(piece) for piece in pieces],
                                      total, [0.0])

    def named(self) -> dict[str, np.ndarray]:
        """The reduced gradients by the names of their variables."""
        return {name: view.copy() for name, view in zip(self.adapter._variables.trainable, self.adapter._buckets.views)}

    def train(self, steps: int, pieces: Sequence[Any] | None = None) -> list[Reduced]:
        results = []
        for _ in range(steps):
            results.append(self.gradients(pieces))
            self.metrics = self.adapter.apply(self.step, 1.0)
            self.step += 1
        return results

    def state(self) -> dict[str, str]:
        """All of the state that a checkpoint holds, hashed by name."""
        found = {f"{group}/{name}": hashlib.sha256(bytes(blob.data)).hexdigest()
                 for group, blobs in self.adapter.export().items() for name, blob in blobs.items()}
        return {**found, "scalars": json.dumps(self.adapter.scalars(), sort_keys=True)}

    def pass_on(self, other: Rank) -> None:
        """Give ``other`` this rank's state by way of what a checkpoint would hold."""
        other.adapter.restore(self.adapter.export(), json.loads(json.dumps(self.adapter.scalars())))
        other.step = self.step


def plain(rank: Rank, places: Any, forward: Callable[[keras.Model, Any], Any]) -> tuple[float, dict[str, np.ndarray]]:
    """The mean loss over the samples at ``places``, regularisation included, and its gradients by the tape alone."""
    batch = tf.nest.map_structure(tf.convert_to_tensor, rows(rank.task.arrays, places))
    model, named = rank.adapter.model, rank.adapter._variables.trainable
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(rank.task.loss(forward(model, batch), batch))
        for term in model.losses:
            loss += tf.cast(term, tf.float32)
    found = tape.gradient(loss, [variable.value for variable in named.values()])
    gradients = {name: np.zeros(variable.shape, variable.dtype) if part is None else tf.convert_to_tensor(part).numpy()
                 for (name, variable), part in zip(named.items(), found)}
    return float(loss), gradients
