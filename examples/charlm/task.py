"""A character transformer that learns to write like the Python language reference: English, tables and code."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from hvtrain import ArraySource, Callback, Task
from hvtrain.data import builtin


class Block(nn.Module):
    """One pre-norm transformer layer: ``x + attention(norm(x))``, then ``x + mlp(norm(x))``."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (batch, heads, length, width / heads)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """Characters (batch, length) -> logits of the character after each (batch, length, alphabet)."""

    def __init__(self, alphabet: int, context: int, width: int, heads: int, layers: int):
        super().__init__()
        self.embed, self.position = nn.Embedding(alphabet, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, alphabet, bias=False)
        for name, parameter in self.named_parameters():
            if name.startswith(("embed", "position")):
                nn.init.normal_(parameter, std=0.02)
            elif parameter.dim() == 2:  # what is added to the residual stream starts smaller, as in GPT-2
                last = name.endswith(("out.weight", "mlp.2.weight"))
                nn.init.normal_(parameter, std=width ** -0.5 / (math.sqrt(2 * layers) if last else 1))

    def forward(self, characters: torch.Tensor) -> torch.Tensor:
        places = torch.arange(characters.shape[1], device=characters.device)
        return self.head(self.norm(self.blocks(self.embed(characters) + self.position(places))))


class Windows:
    """Sample ``index`` is a window of ``context + 1`` characters that begins somewhere in the index-th stretch.

    hvtrain sees ``sample(index, rng)`` and calls that. ``rng`` depends on the seed, the epoch and the index
    alone, so the windows move from epoch to epoch, and a resumed run sees the very same ones.
    """

    def __init__(self, codes: np.ndarray, context: int):
        self.codes, self.context = codes, context

    def __len__(self) -> int:
        return len(self.codes) // self.context - 1

    def sample(self, index: int, rng: np.random.Generator) -> np.ndarray:
        start = index * self.context + int(rng.integers(self.context))
        return self.codes[start:start + self.context + 1]


class CharLM(Task):
    """Predict each next character. The first 90 % of the text are for training, the rest for evaluation.

    Args:
        context: characters that the model sees at most.
        width, heads, layers: size of the transformer; the defaults give about a million parameters.
        write: characters of text that rank 0 writes into its log when training is over; 0 for none.
    """

    def __init__(self, context: int = 128, width: int = 160, heads: int = 5, layers: int = 3, write: int = 400):
        self.context, self.width, self.heads, self.layers, self.write = context, width, heads, layers, write
        text = builtin.english_text()
        self.alphabet = sorted(set(text))
        number = {character: code for code, character in enumerate(self.alphabet)}
        self.codes = np.array([number[character] for character in text], dtype=np.int64)

    def model(self) -> nn.Module:
        return Transformer(len(self.alphabet), self.context, self.width, self.heads, self.layers)

    def data(self, split: str):
        border = int(0.9 * len(self.codes))
        if split == "train":
            return Windows(self.codes[:border], self.context)
        rest, context = self.codes[border:], self.context  # fixed windows, each character predicted once
        count = (len(rest) - 1) // context
        return ArraySource(np.stack([rest[i * context:(i + 1) * context + 1] for i in range(count)]))

    # A batch is one tensor (B, context + 1): all but the last character go in, all but the first should come out.
    def inputs(self, batch):
        return batch[:, :-1]

    def loss(self, outputs, batch):
        # One loss per *sequence*, shape (B,): the mean over its characters.
        return F.cross_entropy(outputs.transpose(1, 2), batch[:, 1:], reduction="none").mean(1)

    def metrics(self, outputs, batch):
        return {"bits_per_character": self.loss(outputs, batch) / math.log(2)}

    def callbacks(self):
        return [Writer(self.alphabet, self.context, self.write)] if self.write else []


class Writer(Callback):
    """When training is over, rank 0 writes some text; look into logs/rank-0.log of the run."""

    def __init__(self, alphabet: list[str], context: int, count: int):
        self.alphabet, self.context, self.count = alphabet, context, count

    @torch.no_grad()
    def on_end(self, moment):
        if moment.rank != 0:
            return
        device = next(moment.model.parameters()).device
        dice = torch.Generator().manual_seed(0)  # its own, so that training's random numbers stay as they are
        text = [self.alphabet.index("\n")]
        for _ in range(self.count):
            logits = moment.model(torch.tensor([text[-self.context:]], device=device))[0, -1].cpu()
            text.append(int(torch.multinomial((logits / 0.7).softmax(0), 1, generator=dice)))
        print("the model writes:", "".join(self.alphabet[code] for code in text))
