"""Fine-tuning: a network that has learnt MNIST is taken over to another set of handwritten digits.

The weights come from the mnist example. The convolutions are used as they are (frozen in config.yaml), the
hidden layer moves slowly, and a new last layer is learnt. The new data are scikit-learn's digits: other writers,
another scanner, 8 x 8 pixels, brought to MNIST's form; of which only a few are used for training.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from hvtrain import ArraySource, Task
from hvtrain.data import builtin
from hvtrain.errors import UsageError

PRETRAIN = """\
Train and export it first (a minute or two):
    hvtrain run examples/mnist/config.yaml
    hvtrain ckpt export runs/mnist --step best --to {weights}
or start from random weights, to compare:  task.args.weights=null"""


class Network(nn.Module):
    """The mnist example's CNN, cut in two: what is taken over (``backbone``) and what is new (``head``)."""

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(2 * width * 7 * 7, 128), nn.ReLU())
        self.head = nn.Linear(128, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(images))


class FineTune(Task):
    """Digits of scikit-learn with a backbone from MNIST.

    Args:
        weights: safetensors file that ``hvtrain ckpt export`` wrote, relative to the current directory;
            None starts from random weights.
        width: the mnist example's ``task.args.width``, which the weights were made with.
        train_fraction: how much of the 1,797 images is for training; the rest is for evaluation.
    """

    def __init__(self, weights: str | None = "runs/mnist.safetensors", width: int = 32, train_fraction: float = 0.1):
        self.weights, self.width, self.train_fraction = weights, width, train_fraction

    def model(self) -> nn.Module:
        network = Network(self.width, classes=10)
        if self.weights is not None:
            self._take_over(network.backbone)
        return network

    def _take_over(self, backbone: nn.Module) -> None:
        """Load the pretrained weights. A resumed run passes here too, and then overwrites them."""
        from safetensors.torch import load_file

        if not Path(self.weights).is_file():
            raise UsageError(f"there are no pretrained weights at {self.weights}. "
                             + PRETRAIN.format(weights=self.weights))
        pretrained = load_file(self.weights)
        # In the mnist example the model is one nn.Sequential: its names "0.weight" ... are ours without "backbone.".
        own = backbone.state_dict()
        misfits = [name for name, tensor in own.items() if pretrained.get(name, tensor.new_empty(0)).shape != tensor.shape]
        if misfits:
            raise UsageError(f"the weights in {self.weights} do not fit: {', '.join(misfits)} are missing or of another "
                             f"shape. Was mnist trained with another task.args.width than {self.width}?")
        backbone.load_state_dict({name: pretrained[name] for name in own})

    def data(self, split: str) -> ArraySource:
        images, labels = builtin.digits()
        train, rest = builtin.split(len(labels), self.train_fraction, labels=labels)
        part = train if split == "train" else rest
        return ArraySource(like_mnist(images[part]), torch.from_numpy(labels[part]))

    def loss(self, outputs, batch):
        return F.cross_entropy(outputs, batch[1], reduction="none")

    def metrics(self, outputs, batch):
        return {"accuracy": (outputs.argmax(1) == batch[1]).float()}


def like_mnist(images: np.ndarray) -> torch.Tensor:
    """8 x 8 images as MNIST has them: 20 x 20 pixels of ink in the middle of 28 x 28."""
    small = torch.from_numpy(images).unsqueeze(1)
    return F.pad(F.interpolate(small, size=(20, 20), mode="bilinear", align_corners=False), (4, 4, 4, 4))
