"""Everything of your own: a data set class with augmentation, an optimizer, a callback that keeps state.

The data are MNIST with a long tail: of every digit there are fewer training images than of the one before, 400
zeros, but only a dozen nines. ``data.sampling: balanced`` draws every class equally often in spite of it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from hvtrain import Callback, Task
from hvtrain.data import builtin


class Digits:
    """A data set as you may have one: a length, and samples by index. Nothing of hvtrain is in it.

    ``sample(index, rng)`` is optional. Where it is there, hvtrain calls it instead of ``__getitem__`` and hands
    it a random generator that depends on the seed, the epoch and the index alone: whichever worker loads the
    sample, in whatever order, before or after a resumption, it is augmented in the same way. So take all
    randomness from ``rng``, and none from ``random`` or ``np.random``.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.images[index][None], int(self.labels[index])


class AugmentedDigits(Digits):
    """The same, each image moved by up to two pixels and with a little noise."""

    def sample(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, int]:
        image, label = self[index]
        image = np.roll(image, rng.integers(-2, 3, size=2), axis=(1, 2))
        noise = 0.05 * rng.standard_normal(image.shape, dtype=np.float32)
        return image + noise, label


class Lion(torch.optim.Optimizer):
    """Sign of a smoothed gradient (Chen et al. 2023, "Symbolic discovery of optimization algorithms").

    What it keeps in ``self.state`` is saved in checkpoints and comes back on resumption, tensors and numbers.
    """

    def __init__(self, groups, lr: float, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0):
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:  # group["lr"] follows optim.schedule
            first, second = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                average = self.state[parameter].setdefault("average", torch.zeros_like(parameter))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(torch.sign(first * average + (1 - first) * parameter.grad), alpha=group["lr"])
                average.mul_(second).add_(parameter.grad, alpha=1 - second)


class StopWhenGood(Callback):
    """Ends training when ``metric`` has been at least ``goal`` in ``patience`` evaluations in a row.

    The count belongs into checkpoints: without :meth:`state`, a resumed run would count from zero again. A
    callback runs on every rank; rank 0's state is what is saved, and every rank gets it back.
    """

    name = "stop_when_good"

    def __init__(self, metric: str, goal: float, patience: int):
        self.metric, self.goal, self.patience, self.good = metric, goal, patience, 0

    def on_start(self, moment):
        print(f"rank {moment.rank} of {moment.size} starts at step {moment.step}; good evaluations so far: {self.good}")

    def on_evaluation_end(self, moment):
        self.good = self.good + 1 if moment.metrics[self.metric] >= self.goal else 0
        if self.good >= self.patience:
            moment.stop = True

    def state(self):
        return {"good": self.good}

    def load_state(self, state):
        self.good = state["good"]


class LongTail(Task):
    """MNIST of which each digit has 32 % fewer training images than the digit before.

    Args:
        width: channels of the first convolution.
        weight_decay: for the optimizer of our own; ``optim.weight_decay`` is for the built-in ones.
        goal: accuracy at which to stop, once it was reached in two evaluations in a row.
    """

    def __init__(self, width: int = 16, weight_decay: float = 0.1, goal: float = 0.95):
        self.width, self.weight_decay, self.goal = width, weight_decay, goal
        images, labels = builtin.mnist_5k()
        train, self.test_part = builtin.split(len(labels), 0.8, labels=labels)
        rank_in_class = np.arange(len(train)) % 400  # the images are sorted by digit, 400 of each
        self.train_part = train[rank_in_class < 400 * 0.68 ** labels[train]]
        self.images, self.all_labels = images, labels

    def model(self) -> nn.Module:
        width = self.width
        return nn.Sequential(
            nn.Conv2d(1, width, 5, stride=2, padding=2), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 5, stride=2, padding=2), nn.ReLU(),
            nn.Flatten(), nn.Linear(2 * width * 7 * 7, 64), nn.ReLU(), nn.Linear(64, 10))

    def data(self, split: str) -> Digits:
        kind, part = (AugmentedDigits, self.train_part) if split == "train" else (Digits, self.test_part)
        return kind(self.images[part], self.all_labels[part])

    def labels(self) -> np.ndarray:
        """The class of each *training* sample, in the order of ``data("train")``: for data.sampling: balanced."""
        return self.all_labels[self.train_part]

    def optimizer(self, groups):
        # Each group has its own "lr" (optim.lr, or that of optim.groups), so the default here is not used.
        return Lion(groups, lr=1e-4, weight_decay=self.weight_decay)

    def loss(self, outputs, batch):
        return F.cross_entropy(outputs, batch[1], reduction="none")

    def metrics(self, outputs, batch):
        # A metric is averaged over all samples. The mean over some of them only, here the nines, is got by
        # giving those the weight (all samples / those) and the rest zero.
        right, nine = (outputs.argmax(1) == batch[1]).float(), (batch[1] == 9).float()
        return {"accuracy": right, "recall_of_nines": right * nine * 10}  # one test image in ten is a nine

    def callbacks(self):
        return [StopWhenGood("accuracy", self.goal, patience=2)]
