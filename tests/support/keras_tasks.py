"""The twin of tasks.py in Keras: the same little problem, with everything in the model that has a state."""

from __future__ import annotations

import os
import time

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from hvtrain import ArraySource, Callback, Task
from tests.support.happenings import Chain, Fault, claim

if os.environ.get("TEST_START_THREAD"):  # what makes forking unsafe: TensorFlow's threads, which its first operation starts
    tf.constant(1)


class Blobs(Task):
    """A little classification problem made from a seed; nothing has to be installed for it.

    Args:
        samples: size of the training set.
        norm: use BatchNormalization and Dropout.
        ledger, fault: see ``Blobs`` in tasks.py.
        slow: seconds that every step takes longer.
        late: ``{"after": N, "seconds": S}``: all models but the first N take S seconds to build. Needs ``ledger``.
        busy: ``[{"rank": R, "step": K, "seconds": S}, ...]``: the graph of that rank's step K computes so much longer,
            each once (noted in ``ledger``): all of it in TensorFlow, no line of Python is run meanwhile.
        layers: so many hidden layers; many take long to trace.
    """

    def __init__(self, samples: int = 230, norm: bool = False, ledger: str | None = None, fault: dict | None = None,
                 slow: float = 0.0, late: dict | None = None, busy: list | None = None, layers: int = 1):
        self.samples, self.norm, self.ledger, self.fault, self.slow = samples, norm, ledger, fault, slow
        self.late, self.busy, self.layers, self.poison = late, busy or [], layers, False

    def model(self) -> keras.Model:
        if self.late is not None and not claim(os.path.join(self.ledger, "built"), self.late["after"]):
            time.sleep(self.late["seconds"])
        self.until = tf.Variable(0.0, dtype=tf.float64)
        normal = [layers.BatchNormalization(), layers.Dropout(0.1, seed=1)] if self.norm else []
        deep = [layers.Dense(32, activation="relu") for _ in range(self.layers - 1)]
        return keras.Sequential([layers.Input((16,)), layers.Dense(32), *normal, layers.ReLU(), *deep, layers.Dense(4)])

    def data(self, split: str) -> ArraySource:
        rng = np.random.default_rng(7 if split == "train" else 8)
        count = self.samples if split == "train" else 101
        labels = rng.integers(0, 4, count)
        points = rng.normal(size=(count, 16)).astype(np.float32)
        points[np.arange(count), labels] += 3
        return ArraySource(points, labels)

    def loss(self, outputs, batch):
        losses = keras.losses.sparse_categorical_crossentropy(batch[1], outputs, from_logits=True)
        if not self.busy:
            return losses
        turns, = tf.while_loop(lambda turn: tf.timestamp() < self.until, lambda turn: [turn + 1], [tf.constant(0.0)])
        return losses + 0.0 * turns

    def metrics(self, outputs, batch):
        return {"accuracy": ops.cast(ops.equal(ops.argmax(outputs, axis=1), batch[1]), "float32")}

    def callbacks(self):
        return [Chain(), Pace(self), Fault(self)]


class Pace(Callback):
    """Makes steps slow, and keeps graphs busy."""

    def __init__(self, task: Blobs):
        self.task = task

    def on_commit(self, moment):
        time.sleep(self.task.slow)
        for number, busy in enumerate(self.task.busy):
            if (moment.rank, moment.step + 1) == (busy["rank"], busy["step"]) and \
                    claim(os.path.join(self.task.ledger, f"busy.{number}"), 1):
                self.task.until.assign(time.time() + busy["seconds"])
