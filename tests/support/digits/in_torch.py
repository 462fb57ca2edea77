"""The digits in PyTorch."""

from __future__ import annotations

from functools import cache
from typing import Mapping

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from hvtrain import ArraySource, Task
from hvtrain.checkpoint.blob import Blob
from tests.support.digits import common

FRAMEWORK = "torch"
NAMES = {"hidden/kernel": "hidden.weight", "hidden/bias": "hidden.bias", "output/kernel": "output.weight",
         "output/bias": "output.bias", "norm/gamma": "norm.weight", "norm/beta": "norm.bias",
         "norm/mean": "norm.running_mean", "norm/variance": "norm.running_var"}


class Digits(Task):
    """The arguments are those of all three: see :class:`tests.support.conformance.Kit`."""

    def __init__(self, norm: bool = False, dropout: float = 0.0, given: bool = True):
        self.norm, self.dropout, self.given = norm, dropout, given

    def model(self) -> nn.Module:
        model = nn.Sequential()
        model.add_module("hidden", nn.Linear(64, common.WIDTH))
        if self.norm:
            model.add_module("norm", nn.BatchNorm1d(common.WIDTH))
        model.add_module("relu", nn.ReLU())
        if self.dropout:
            model.add_module("dropout", nn.Dropout(self.dropout))
        model.add_module("output", nn.Linear(common.WIDTH, common.CLASSES))
        if self.given:
            given = {NAMES[name]: torch.from_numpy(_turned(name, array).copy())
                     for name, array in common.weights(self.norm).items()}
            model.load_state_dict(given, strict=False)
        return model

    def data(self, split: str):
        images, labels = common.training()
        ones = torch.ones(len(labels))
        return ArraySource(torch.from_numpy(images), torch.from_numpy(labels), ones) if split == "train" else None

    def loss(self, outputs, batch):
        return F.cross_entropy(outputs.float(), batch[1], reduction="none") * batch[2]

    def metrics(self, outputs, batch):
        return {"accuracy": (outputs.argmax(1) == batch[1]).float()}


def _turned(name: str, array: np.ndarray) -> np.ndarray:
    return array.T if name.endswith("kernel") else array


def read(blobs: Mapping[str, Blob]) -> dict[str, np.ndarray]:
    """Weights by the common names."""
    return {name: _turned(name, blobs[own].to_numpy()) for name, own in NAMES.items() if own in blobs}


@cache
def half_works() -> bool:
    """Whether this build of PyTorch can compute forward and backward passes in float16 on the CPU."""
    try:
        layer = nn.Linear(4, 4)
        with torch.autocast("cpu", dtype=torch.float16):
            outputs = layer(torch.ones(2, 4))
        outputs.float().sum().backward()
        return outputs.dtype == torch.float16 and layer.weight.grad is not None
    except RuntimeError:
        return False


def tidy() -> None:
    """Undo what building an adapter has left in this process."""
