"""The digits in NumPy, with gradients by hand."""

from __future__ import annotations

from typing import Any, Mapping

import numpy as np

from hvtrain import ArraySource, Task
from hvtrain.checkpoint.blob import Blob
from tests.support.digits import common

FRAMEWORK = "numpy"
STATISTICS = ("norm/mean", "norm/variance")
KEEP, EPS = np.float32(0.9), np.float32(1e-5)


class Perceptron:
    """Fulfils :class:`hvtrain.adapters.reference_model.Model`."""

    def __init__(self, weights: Mapping[str, np.ndarray], dropout: float):
        self.parameters = {name: array for name, array in weights.items() if name not in STATISTICS}
        self.statistics = {name: array for name, array in weights.items() if name in STATISTICS}
        self._dropout = dropout

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        weights = self.parameters
        if not self.statistics:
            return common.outputs(weights, inputs)
        mean, variance = self.statistics.values()
        before = inputs @ weights["hidden/kernel"] + weights["hidden/bias"]
        normal = (before - mean) / np.sqrt(variance + EPS) * weights["norm/gamma"] + weights["norm/beta"]
        return np.maximum(normal, 0) @ weights["output/kernel"] + weights["output/bias"]

    def losses_and_gradients(self, batch: Any, random: np.random.Generator):
        (images, labels, factors), weights = batch, self.parameters
        before = images @ weights["hidden/kernel"] + weights["hidden/bias"]
        if self.statistics:
            centred, deviation = self._normalised(before)
            normal = centred / deviation * weights["norm/gamma"] + weights["norm/beta"]
        else:
            normal = before
        kept = (random.random(normal.shape, np.float32) >= self._dropout) / np.float32(1 - self._dropout)
        hidden = np.maximum(normal, 0) * kept
        logits = hidden @ weights["output/kernel"] + weights["output/bias"]
        to_logits = np.exp(logits - logits.max(1, keepdims=True))
        to_logits /= to_logits.sum(1, keepdims=True)
        to_logits[np.arange(len(labels)), labels] -= 1
        to_logits *= factors[:, None]
        gradients = {"output/kernel": hidden.T @ to_logits, "output/bias": to_logits.sum(0)}
        to_normal = to_logits @ weights["output/kernel"].T * kept * (normal > 0)
        if self.statistics:
            unit = centred / deviation
            gradients |= {"norm/gamma": (to_normal * unit).sum(0), "norm/beta": to_normal.sum(0)}
            to_unit = to_normal * weights["norm/gamma"]
            to_before = (to_unit - to_unit.mean(0) - unit * (to_unit * unit).mean(0)) / deviation
        else:
            to_before = to_normal
        gradients |= {"hidden/kernel": images.T @ to_before, "hidden/bias": to_before.sum(0)}
        return common.losses(logits, labels) * factors, gradients

    def _normalised(self, before: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Centred numbers and their standard deviations; the statistics move."""
        mean, variance = before.mean(0), before.var(0)
        for statistic, found in zip(self.statistics.values(), (mean, variance)):
            statistic += (1 - KEEP) * (found - statistic)
        return before - mean, np.sqrt(variance + EPS)


class Digits(Task):
    """The arguments are those of all three: see :class:`tests.support.conformance.Kit`."""

    def __init__(self, norm: bool = False, dropout: float = 0.0, given: bool = True):
        self.norm, self.dropout, self.given = norm, dropout, given

    def model(self) -> Perceptron:
        weights = common.weights(self.norm)
        if not self.given:
            for name in ("hidden/kernel", "output/kernel"):
                weights[name] = np.random.standard_normal(weights[name].shape).astype(np.float32)
        return Perceptron(weights, self.dropout)

    def data(self, split: str):
        images, labels = common.training()
        return ArraySource(images, labels, np.ones(len(labels), np.float32)) if split == "train" else None

    def loss(self, outputs, batch):
        return common.losses(outputs, batch[1]) * batch[2]

    def metrics(self, outputs, batch):
        return {"accuracy": outputs.argmax(1) == batch[1]}


def read(blobs: Mapping[str, Blob]) -> dict[str, np.ndarray]:
    """Weights by the common names."""
    return {name: blob.to_numpy() for name, blob in blobs.items()}


def half_works() -> bool:
    return False


def tidy() -> None:
    """Undo what building an adapter has left in this process."""
