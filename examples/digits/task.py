"""Small images of digits, a small network: the smallest complete task, and the one the tests train."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from hvtrain import ArraySource, Task
from hvtrain.data import builtin


class Digits(Task):
    """A multi-layer perceptron on scikit-learn's 8 x 8 digits; ``norm`` adds BatchNorm."""

    def __init__(self, width: int = 64, norm: bool = False):
        self.width, self.norm = width, norm

    def model(self) -> nn.Module:
        norm = [nn.BatchNorm1d(self.width)] if self.norm else []
        return nn.Sequential(nn.Flatten(), nn.Linear(64, self.width), *norm, nn.ReLU(), nn.Linear(self.width, 10))

    def data(self, split: str) -> ArraySource:
        images, labels = builtin.digits()
        train, rest = builtin.split(len(labels), 0.8, labels=labels)
        part = train if split == "train" else rest
        return ArraySource(torch.from_numpy(images[part]), torch.from_numpy(labels[part]))

    def labels(self):
        return self.data("train").arrays[1]

    def loss(self, outputs, batch):
        return F.cross_entropy(outputs, batch[1], reduction="none")

    def metrics(self, outputs, batch):
        return {"accuracy": (outputs.argmax(1) == batch[1]).float()}
