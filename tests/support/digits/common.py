"""What the three tasks share: the data, the first weights, and what they must give, computed in NumPy."""

from __future__ import annotations

from functools import cache
from typing import Mapping

import numpy as np

from hvtrain.data import builtin

WIDTH, CLASSES = 32, 10
Arrays = Mapping[str, np.ndarray]


@cache
def training() -> tuple[np.ndarray, np.ndarray]:
    """Images, float32 (N, 64), and labels, int64 (N,)."""
    images, labels = builtin.digits()
    return images.reshape(len(images), 64), labels


def weights(norm: bool = False) -> dict[str, np.ndarray]:
    """The first weights, float32: kernels as (inputs, outputs)."""
    random = np.random.default_rng(11)

    def kernel(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)

    found = {"hidden/kernel": kernel(64, WIDTH), "hidden/bias": np.zeros(WIDTH, np.float32),
             "output/kernel": kernel(WIDTH, CLASSES), "output/bias": np.zeros(CLASSES, np.float32)}
    if norm:
        found |= {"norm/gamma": np.ones(WIDTH, np.float32), "norm/beta": np.zeros(WIDTH, np.float32),
                  "norm/mean": np.zeros(WIDTH, np.float32), "norm/variance": np.ones(WIDTH, np.float32)}
    return found


def outputs(found: Arrays, images: np.ndarray) -> np.ndarray:
    """The logits (B, 10) of the network without normalisation."""
    hidden = np.maximum(images @ found["hidden/kernel"] + found["hidden/bias"], 0)
    return hidden @ found["output/kernel"] + found["output/bias"]


def losses(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Cross-entropy of each sample, (B,)."""
    shifted = logits - logits.max(1, keepdims=True)
    return np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(labels)), labels]
