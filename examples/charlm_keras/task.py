"""A character transformer in Keras that learns to write like the Python language reference: English, tables and code."""

from __future__ import annotations

import math

import keras
import numpy as np
from keras import layers, ops

from hvtrain import ArraySource, Callback, Task
from hvtrain.data import builtin


class Block(layers.Layer):
    """One pre-norm transformer layer: ``x + attention(norm(x))``, then ``x + mlp(norm(x))``.

    ``depth`` is the number of them: what is added to the residual stream starts smaller, as in GPT-2.
    """

    def __init__(self, width: int, heads: int, depth: int):
        super().__init__()
        self.heads = heads
        wide, narrow = normal(width ** -0.5), normal(width ** -0.5 / math.sqrt(2 * depth))
        self.norm1, self.norm2 = layers.LayerNormalization(epsilon=1e-5), layers.LayerNormalization(epsilon=1e-5)
        self.qkv = layers.Dense(3 * width, use_bias=False, kernel_initializer=wide)
        self.out = layers.Dense(width, kernel_initializer=narrow)
        self.mlp1 = layers.Dense(4 * width, activation="gelu", kernel_initializer=wide)
        self.mlp2 = layers.Dense(width, kernel_initializer=narrow)

    def build(self, shape):
        width = shape[-1]
        for layer, inputs in ((self.norm1, width), (self.norm2, width), (self.qkv, width), (self.out, width),
                              (self.mlp1, width), (self.mlp2, 4 * width)):
            layer.build((*shape[:-1], inputs))

    def call(self, x):
        length, width = ops.shape(x)[1], x.shape[2]
        qkv = ops.reshape(self.qkv(self.norm1(x)), (-1, length, 3, self.heads, width // self.heads))
        mixed = ops.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], is_causal=True)
        x = x + self.out(ops.reshape(mixed, (-1, length, width)))
        return x + self.mlp2(self.mlp1(self.norm2(x)))


class Places(layers.Layer):
    """Adds to each character's vector one that tells its place."""

    def __init__(self, context: int, width: int):
        super().__init__()
        self.vectors = self.add_weight(shape=(context, width), initializer=normal(0.02), name="vectors")

    def call(self, x):
        return x + self.vectors[:ops.shape(x)[1]]


def normal(deviation: float) -> keras.Initializer:
    return keras.initializers.RandomNormal(stddev=deviation)


def transformer(alphabet: int, context: int, width: int, heads: int, depth: int) -> keras.Model:
    """Characters (batch, length) -> logits of the character after each (batch, length, alphabet)."""
    characters = keras.Input((None,), dtype="int64")
    x = Places(context, width)(layers.Embedding(alphabet, width, embeddings_initializer=normal(0.02))(characters))
    for _ in range(depth):
        x = Block(width, heads, depth)(x)
    x = layers.LayerNormalization(epsilon=1e-5)(x)
    logits = layers.Dense(alphabet, use_bias=False, kernel_initializer=normal(width ** -0.5))(x)
    return keras.Model(characters, logits)


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

    def model(self) -> keras.Model:
        return transformer(len(self.alphabet), self.context, self.width, self.heads, self.layers)

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
        return ops.mean(keras.losses.sparse_categorical_crossentropy(batch[:, 1:], outputs, from_logits=True), axis=1)

    def metrics(self, outputs, batch):
        return {"bits_per_character": self.loss(outputs, batch) / math.log(2)}

    def optimizer(self, groups):
        adamw = keras.optimizers.AdamW(groups[0]["lr"], weight_decay=0.1, beta_1=0.9, beta_2=0.95)
        adamw.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])  # these are not to be decayed towards 0
        return adamw

    def callbacks(self):
        return [Writer(self.alphabet, self.context, self.write)] if self.write else []


class Writer(Callback):
    """When training is over, rank 0 writes some text; look into logs/rank-0.log of the run."""

    def __init__(self, alphabet: list[str], context: int, count: int):
        self.alphabet, self.context, self.count = alphabet, context, count

    def on_end(self, moment):
        if moment.rank != 0:
            return
        dice = np.random.default_rng(0)
        text, window = [self.alphabet.index("\n")], np.zeros((1, self.context), np.int64)
        for _ in range(self.count):
            recent = text[-self.context:]
            window[0, :len(recent)] = recent  # always of one length, so that Keras traces once; nobody looks ahead
            logits = moment.model.predict_on_batch(window)[0, len(recent) - 1].astype(float)
            chances = np.exp((logits - logits.max()) / 0.7)
            text.append(int(dice.choice(len(chances), p=chances / chances.sum())))
        print("the model writes:", "".join(self.alphabet[code] for code in text))
