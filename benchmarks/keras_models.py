"""The workloads in Keras, shared by hvtrain's task and the peer's script: as in models.py, without PyTorch.

TensorFlow is imported by what needs it, so that whoever only asks for batch sizes is not kept waiting.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Callable, Iterator

import numpy as np

from hvtrain.data import builtin


@dataclass(frozen=True)
class Workload:
    """What is trained. ``batch`` is per worker; ``steps`` includes those before the clock starts.

    ``optim`` names a class of Keras's by its name in hvtrain; ``settings`` are hvtrain's too.
    """

    model: Callable[[], Any]
    data: Callable[[], tuple[np.ndarray, np.ndarray]]
    batch: int
    steps: int
    optim: str
    settings: dict[str, Any] = field(default_factory=dict)

    def optimizer(self) -> Any:
        """As a user writes it."""
        import keras

        settings = dict(self.settings)
        return {"sgd": keras.optimizers.SGD, "adamw": keras.optimizers.AdamW}[self.optim](settings.pop("lr"), **settings)


def sample_losses(outputs: Any, targets: Any) -> Any:
    """Cross entropy per sample, shape (B,)."""
    import keras

    return keras.losses.sparse_categorical_crossentropy(targets, outputs, from_logits=True)


def batches(data: tuple[np.ndarray, np.ndarray], batch: int, rank: int, size: int, steps: int
            ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """A rank's batches of shuffled epochs, without the short last one: what the peer reads."""
    inputs, targets = data
    done, epoch = 0, 0
    while True:
        order = np.random.default_rng(epoch).permutation(len(inputs))
        for start in range(0, len(order) - batch * size + 1, batch * size):
            if done == steps:
                return
            mine = order[start + rank * batch:start + (rank + 1) * batch]
            yield inputs[mine], targets[mine]
            done += 1
        epoch += 1


def mnist_cnn(width: int = 32) -> Any:
    """The network of examples/mnist_keras, 0.42 M parameters."""
    import keras
    from keras import layers

    return keras.Sequential([
        layers.Input((28, 28, 1)),
        layers.Conv2D(width, 3, padding="same", activation="relu"), layers.MaxPooling2D(2),
        layers.Conv2D(2 * width, 3, padding="same", activation="relu"), layers.MaxPooling2D(2),
        layers.Flatten(), layers.Dense(128, activation="relu"), layers.Dense(10)])


def mlp() -> Any:
    """Few, large layers: 25.2 M parameters, 101 MB of gradients a step."""
    import keras
    from keras import layers

    return keras.Sequential([
        layers.Input((1024,)), layers.Dense(4096, activation="relu"), layers.Dense(4096, activation="relu"),
        layers.Dense(1024, activation="relu"), layers.Dense(10)])


def mnist_data() -> tuple[np.ndarray, np.ndarray]:
    """5,000 real digits as (N, 28, 28, 1)."""
    images, labels = builtin.mnist_5k()
    return images[..., None], labels


def padded_mnist_data() -> tuple[np.ndarray, np.ndarray]:
    """The same with a margin: 32 x 32 = 1024 numbers each."""
    images, labels = builtin.mnist_5k()
    return np.pad(images, ((0, 0), (2, 2), (2, 2))).reshape(len(images), 1024), labels


WORKLOADS = {
    "mnist": Workload(mnist_cnn, mnist_data, batch=128, steps=103, optim="adamw", settings={"lr": 2e-3}),
    "mlp": Workload(mlp, padded_mnist_data, batch=64, steps=63, optim="sgd", settings={"lr": 1e-2, "momentum": 0.9}),
}
