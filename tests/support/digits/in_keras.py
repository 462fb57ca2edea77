"""The digits in Keras. Its layers have no names of their own: an adapter has to find stable ones."""

from __future__ import annotations

from typing import Mapping

import keras
import numpy as np
from keras import layers, ops

from hvtrain import ArraySource, Task
from hvtrain.checkpoint.blob import Blob
from tests.support.digits import common

FRAMEWORK = "keras"
NAMES = {name: f"sequential/{own}" for name, own in {
    "hidden/kernel": "dense/kernel", "hidden/bias": "dense/bias", "output/kernel": "dense_1/kernel",
    "output/bias": "dense_1/bias", "norm/gamma": "batch_normalization/gamma", "norm/beta": "batch_normalization/beta",
    "norm/mean": "batch_normalization/moving_mean", "norm/variance": "batch_normalization/moving_variance"}.items()}


class Digits(Task):
    """The arguments are those of all three: see :class:`tests.support.conformance.Kit`."""

    def __init__(self, norm: bool = False, dropout: float = 0.0, given: bool = True):
        self.norm, self.dropout, self.given = norm, dropout, given

    def model(self) -> keras.Model:
        hidden, output = layers.Dense(common.WIDTH), layers.Dense(common.CLASSES)
        norm = [layers.BatchNormalization()] if self.norm else []
        dropout = [layers.Dropout(self.dropout)] if self.dropout else []
        model = keras.Sequential([layers.Input((64,)), hidden, *norm, layers.ReLU(), *dropout, output])
        if self.given:
            given = common.weights()
            hidden.set_weights([given["hidden/kernel"], given["hidden/bias"]])
            output.set_weights([given["output/kernel"], given["output/bias"]])
        return model

    def data(self, split: str):
        images, labels = common.training()
        return ArraySource(images, labels, np.ones(len(labels), np.float32)) if split == "train" else None

    def loss(self, outputs, batch):
        logits = ops.cast(outputs, "float32")
        return keras.losses.sparse_categorical_crossentropy(batch[1], logits, from_logits=True) * batch[2]

    def metrics(self, outputs, batch):
        return {"accuracy": ops.cast(ops.equal(ops.argmax(outputs, axis=1), batch[1]), "float32")}


def read(blobs: Mapping[str, Blob]) -> dict[str, np.ndarray]:
    """Weights by the common names."""
    return {name: blobs[own].to_numpy() for name, own in NAMES.items() if own in blobs}


def half_works() -> bool:
    return True


def tidy() -> None:
    """Undo what building an adapter has left in this process."""
    keras.config.set_dtype_policy("float32")
