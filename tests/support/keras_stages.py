"""Keras models in stages, on devices that are parts of this processor."""

from __future__ import annotations

from typing import Any, Callable, Sequence

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tests.support.keras_small import SAMPLES, Rank, Small

DEVICES = 4
RNG = np.random.default_rng(5)
POINTS = RNG.normal(size=(SAMPLES, 6)).astype(np.float32)
OTHERS = RNG.normal(size=(SAMPLES, 6)).astype(np.float32)
BOTH = {"a": POINTS, "b": OTHERS}


def logical_devices() -> None:
    """Have TensorFlow take the processor for several devices. Before its first operation: when tests are collected."""
    processor, = tf.config.list_physical_devices("CPU")
    if tf.config.get_logical_device_configuration(processor) is None:
        tf.config.set_logical_device_configuration(processor, [tf.config.LogicalDeviceConfiguration()] * DEVICES)


def staged(make: Callable[[], keras.Model], data: Any, split: Sequence[int], microbatches: int = 4, world: Any = None,
           hybrid: dict | None = None, task: dict | None = None, **sections: Any) -> Rank:
    """A rank whose model lies in ``split`` stages."""
    sections = {"comm": {"bucket_mb": 1e-4, "first_bucket_mb": 1e-4}, **sections}
    return Rank(Small(make, data, **(task or {})), world, data={"global_batch": SAMPLES}, hybrid={
        "stages": len(split), "split": list(split), "microbatches": microbatches, "devices": "cpu", **(hybrid or {})}, **sections)


def pieces(count: int, places: Any = np.arange(SAMPLES)) -> list[np.ndarray]:
    return np.array_split(places, count)


def everything() -> keras.Model:
    """Two inputs, a value that skips links, a layer that is called twice, a frozen one, both kinds of regularisation.

    Nine links: first, frozen, multiply, shared, add, two of a Sequential model, shared again, and the last.
    """
    a, b = layers.Input((6,), name="a"), layers.Input((6,), name="b")
    shared = layers.Dense(6, activation="tanh", kernel_regularizer="l2")
    frozen = layers.Dense(6, activation="tanh", name="frozen", trainable=False)
    first = layers.Dense(6, activation="tanh", activity_regularizer="l2")(a)
    mixed = layers.Multiply()([first, frozen(b)])
    skip = layers.Add()([shared(mixed), first])
    nested = keras.Sequential([layers.Input((6,)), layers.Dense(5, activation="tanh"), layers.Dense(6)])
    return keras.Model([a, b], {"one": layers.Dense(2)(shared(nested(skip))), "two": mixed})


def small() -> keras.Model:
    """Four links: with statistics, and random numbers."""
    return keras.Sequential([layers.Input((6,)), layers.Dense(6, activation="tanh"), layers.BatchNormalization(momentum=0.8),
                             layers.Dropout(0.4), layers.Dense(2)])


def random() -> keras.Model:
    """Statistics, and two kinds of random numbers, with a generator of one's own and without."""
    return keras.Sequential([
        layers.Input((6,)), layers.Dense(8), layers.BatchNormalization(momentum=0.8), layers.Dropout(0.4), layers.ReLU(),
        layers.Dense(8), layers.BatchNormalization(), layers.GaussianNoise(0.3), layers.Lambda(_noise), layers.Dense(2)])


def _noise(values):
    return values + 0.1 * keras.random.normal(keras.ops.shape(values), dtype=values.dtype)
