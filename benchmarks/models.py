"""The workloads: model, data, loss and optimizer settings, shared by hvtrain's tasks and the peers' scripts.

Nothing here depends on hvtrain beyond the readers of data that comes with pip packages, which import numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Callable, Iterator

import torch
from torch import nn
from torch.nn import functional as F

from hvtrain.data import builtin

CONTEXT = 64
"""Characters that the transformer sees."""


@dataclass(frozen=True)
class Workload:
    """What is trained. ``batch`` is per worker; ``steps`` includes those before the clock starts.

    ``optim`` names a class of :data:`OPTIMIZERS`; ``settings`` are its arguments, the same ones for all.
    """

    model: Callable[[], nn.Module]
    data: Callable[[], tuple[torch.Tensor, torch.Tensor]]
    batch: int
    steps: int
    optim: str
    settings: dict[str, Any] = field(default_factory=dict)

    def optimizer(self, parameters: Any, fused: bool) -> torch.optim.Optimizer:
        """As a user writes it; ``fused=True`` asks for PyTorch's fused implementation, else PyTorch chooses."""
        extra = {"fused": True} if fused else {}
        return OPTIMIZERS[self.optim](parameters, **self.settings, **extra)


OPTIMIZERS = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}


def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy; over all characters for sequences."""
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())


def sample_losses(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The same per sample, shape (B,), as hvtrain takes it."""
    each = F.cross_entropy(outputs.flatten(0, -2), targets.flatten(), reduction="none")
    return each.view(len(targets), -1).mean(1)


def batches(data: tuple[torch.Tensor, torch.Tensor], batch: int, rank: int, size: int, steps: int
            ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """A rank's batches of shuffled epochs, without the short last one: what the peers read.

    Two index operations on tensors in memory, which costs less than a DataLoader over a TensorDataset does.
    """
    inputs, targets = data
    done, epoch = 0, 0
    while True:
        order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(epoch))
        for start in range(0, len(order) - batch * size + 1, batch * size):
            if done == steps:
                return
            mine = order[start + rank * batch:start + (rank + 1) * batch]
            yield inputs[mine], targets[mine]
            done += 1
        epoch += 1


class Block(nn.Module):
    """A transformer block, normalised before each half."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = (part.view(batch, length, self.heads, -1).transpose(1, 2)
                   for part in self.qkv(self.norm1(x)).chunk(3, dim=-1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp(self.norm2(x))


class CharTransformer(nn.Module):
    """A character model: 6 layers of width 384 are 10.8 M parameters."""

    def __init__(self, symbols: int = 128, width: int = 384, layers: int = 6, heads: int = 6):
        super().__init__()
        self.symbols, self.places = nn.Embedding(symbols, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, symbols, bias=False)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        x = self.symbols(text) + self.places(torch.arange(text.shape[1], device=text.device))
        return self.head(self.norm(self.blocks(x)))


def mnist_cnn(width: int = 32) -> nn.Module:
    """The network of examples/mnist, 0.42 M parameters."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(2 * width * 7 * 7, 128), nn.ReLU(), nn.Linear(128, 10))


def mlp() -> nn.Module:
    """Few, large layers: 25.2 M parameters, 101 MB of gradients a step."""
    return nn.Sequential(nn.Flatten(), nn.Linear(1024, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(),
                         nn.Linear(4096, 1024), nn.ReLU(), nn.Linear(1024, 10))


def digits_mlp() -> nn.Module:
    """The network of examples/digits."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def mnist_data() -> tuple[torch.Tensor, torch.Tensor]:
    """5,000 real digits as (N, 1, 28, 28)."""
    images, labels = builtin.mnist_5k()
    return torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels)


def padded_mnist_data() -> tuple[torch.Tensor, torch.Tensor]:
    """The same with a margin: 32 x 32 = 1024 numbers each."""
    images, labels = mnist_data()
    return F.pad(images, (2, 2, 2, 2)), labels


def text_data() -> tuple[torch.Tensor, torch.Tensor]:
    """English text as 7,000 windows of characters (ASCII) and of the characters that follow them."""
    text = torch.frombuffer(bytearray(builtin.english_text().encode("ascii", "replace")), dtype=torch.uint8).long()
    count = (len(text) - 1) // CONTEXT
    return text[:count * CONTEXT].view(count, CONTEXT), text[1:count * CONTEXT + 1].view(count, CONTEXT)


def digits_data() -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = builtin.digits()
    return torch.from_numpy(images), torch.from_numpy(labels)


WORKLOADS = {
    "mnist": Workload(mnist_cnn, mnist_data, batch=128, steps=103, optim="adamw", settings={"lr": 2e-3}),
    "charlm": Workload(CharTransformer, text_data, batch=8, steps=43, optim="adamw", settings={"lr": 3e-4}),
    "mlp": Workload(mlp, padded_mnist_data, batch=64, steps=63, optim="sgd", settings={"lr": 1e-2, "momentum": 0.9}),
    "digits": Workload(digits_mlp, digits_data, batch=16, steps=5, optim="adamw", settings={"lr": 3e-3}),
}
