"""SGD, Adam and AdamW over named arrays, step by step what PyTorch's optimizers of these names do."""

from __future__ import annotations

import math
from fnmatch import fnmatchcase
from typing import Any, Mapping

import numpy as np

from hvtrain.config.training import OptimConfig
from hvtrain.errors import UsageError, UserCodeError

_DEFAULTS: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.0, "weight_decay": 0.0},
    "adam": {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0},
    "adamw": {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01},
}


class Optimizer:
    """The optimizer that ``config`` describes.

    ``trainable`` are the ``parameters`` that no group freezes; ``state`` has what is remembered from step to step, as
    ``parameter/slot``.

    Raises:
        UsageError: a group matches no parameter, or ``optim`` has what the optimizer does not take.
        UserCodeError: nothing is left to train.
    """

    def __init__(self, parameters: Mapping[str, np.ndarray], config: OptimConfig):
        self._name = config.name
        self._settings = _settings(parameters, config)
        self.trainable = {name: parameters[name] for name in parameters if name in self._settings}
        if not self.trainable:
            raise UserCodeError("the model has no trainable parameter; see optim.groups for what is frozen")
        self.state = {f"{name}/{slot}": np.zeros_like(parameter) for name, parameter in self.trainable.items()
                      for slot in self._slots(name)}

    def _slots(self, name: str) -> tuple[str, ...]:
        if self._name == "sgd":
            return ("momentum",) if self._settings[name]["momentum"] else ()
        return "mean", "square"

    def step(self, gradients: Mapping[str, np.ndarray], number: int, factor: float) -> None:
        """Take step ``number`` (from 0) with every learning rate times ``factor``."""
        for name, parameter in self.trainable.items():
            settings, gradient = self._settings[name], gradients[name]
            slots = [self.state[f"{name}/{slot}"] for slot in self._slots(name)]
            rate, decay = settings["lr"] * factor, settings["weight_decay"]
            if self._name == "adamw":
                parameter *= 1 - rate * decay
            elif decay:
                gradient = gradient + decay * parameter
            if self._name != "sgd":
                parameter -= rate * _adam(gradient, *slots, number + 1, *settings["betas"], settings["eps"])
            elif slots:
                slots[0][...] = settings["momentum"] * slots[0] + gradient
                parameter -= rate * slots[0]
            else:
                parameter -= rate * gradient


def _adam(gradient: np.ndarray, mean: np.ndarray, square: np.ndarray, count: int, keep_mean: float, keep_square: float,
          eps: float) -> np.ndarray:
    """The step of Kingma and Ba, 2015, for a rate of 1; ``count`` is the number of steps with this one."""
    mean += (1 - keep_mean) * (gradient - mean)
    square *= keep_square
    square += (1 - keep_square) * gradient * gradient
    unbiased = np.sqrt(square) / math.sqrt(1 - keep_square**count)
    return mean / (1 - keep_mean**count) / (unbiased + eps)


def _settings(parameters: Mapping[str, np.ndarray], config: OptimConfig) -> dict[str, dict[str, Any]]:
    """What holds for each parameter that is trained; the first group that matches it goes first."""
    if config.name not in _DEFAULTS:
        raise UsageError(f"optim.name is {config.name}, but framework: numpy has only {', '.join(_DEFAULTS)}")
    default = {**_DEFAULTS[config.name], "lr": config.lr}
    unknown = set(config.args) - set(default)
    if unknown:
        raise UsageError(f"optim.args has {', '.join(sorted(unknown))}, which {config.name} of framework: numpy does "
                         f"not take. It takes: {', '.join(sorted(default))}")
    default |= config.args
    common = {**default, **_given(config, default)}
    found, used = {}, set()
    for name in parameters:
        number = next((i for i, group in enumerate(config.groups) if fnmatchcase(name, group.params)), None)
        used.add(number)
        if number is None:
            found[name] = common
        elif not config.groups[number].freeze:
            group = config.groups[number]
            found[name] = {**common, "lr": group.lr or config.lr, **_given(group, default)}
    for number, group in enumerate(config.groups):
        if number not in used:
            raise UsageError(f"optim.groups[{number}].params is {group.params!r}, which matches no parameter that an "
                             f"earlier group has not taken. The model has: {', '.join(list(parameters)[:8])}")
    return found


def _given(section: Any, known: Mapping[str, Any]) -> dict[str, Any]:
    """Of weight_decay and momentum, what ``section`` has and the optimizer knows."""
    return {key: value for key in ("weight_decay", "momentum")
            if key in known and (value := getattr(section, key)) is not None}
