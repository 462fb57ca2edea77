"""From ``optim`` in the job file to a PyTorch optimizer over named parameter groups."""

from __future__ import annotations

import inspect
from fnmatch import fnmatchcase
from typing import Any, Mapping

import torch

from hvtrain.config.training import GroupConfig, OptimConfig
from hvtrain.errors import UsageError, UserCodeError
from hvtrain.task import Task

_CLASSES = {
    "sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop, "adagrad": torch.optim.Adagrad,
}


def freeze(model: torch.nn.Module, groups: list[GroupConfig]) -> None:
    """Switch off the gradients of parameters whose first matching group says ``freeze``.

    Raises:
        UsageError: a group matches no parameter.
    """
    used = set()
    for name, parameter in model.named_parameters():
        number = _first_match(name, groups)
        if number is not None:
            used.add(number)
            if groups[number].freeze:
                parameter.requires_grad_(False)
    for number, group in enumerate(groups):
        if number not in used:
            names = [name for name, _ in model.named_parameters()]
            raise UsageError(f"optim.groups[{number}].params is {group.params!r}, which matches no parameter that an "
                             f"earlier group has not taken. The model has: {_some(names)}")


def param_groups(model: torch.nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """The trainable parameters as PyTorch parameter groups, each with the settings that it overrides."""
    members: dict[int | None, list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            members.setdefault(_first_match(name, config.groups), []).append(parameter)
    result = []
    for number, parameters in members.items():
        settings: dict[str, Any] = {"params": parameters}
        if number is not None:
            group = config.groups[number]
            settings.update({key: value for key in ("lr", "weight_decay", "momentum")
                             if (value := getattr(group, key)) is not None})
        result.append(settings)
    return result


def build(task: Task, model: torch.nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The task's own optimizer, or the one that ``optim`` describes.

    PyTorch's fused implementation is taken where there is one, because it is several times faster than the
    default for models with many small parameters; ``optim.args: {fused: false}`` declines.

    Raises:
        UserCodeError: there is nothing to train, or the task's optimizer is none.
        UsageError: ``optim.args`` do not fit the optimizer.
    """
    groups = param_groups(model, config)
    if not groups:
        raise UserCodeError("the model has no trainable parameter; see optim.groups for what is frozen")
    for settings in groups:
        settings.setdefault("lr", config.lr)
    own = task.optimizer(groups)
    if own is not None:
        if not isinstance(own, torch.optim.Optimizer):
            raise UserCodeError(f"Task.optimizer gave a {type(own).__name__}; it must give a torch.optim.Optimizer "
                                "or None")
        _refuse_idle_settings(config)
        return own
    return _configured(groups, config)


def _refuse_idle_settings(config: OptimConfig) -> None:
    """A setting that would do nothing beside the task's own optimizer is a misunderstanding."""
    idle = [key for key in ("name", "momentum", "weight_decay", "args") if getattr(config, key) != getattr(OptimConfig(), key)]
    if idle:
        raise UsageError(f"the task brings its own optimizer, so optim.{idle[0]} would do nothing; leave it out, or "
                         "have Task.optimizer return None. optim.lr, optim.schedule and optim.groups do apply")


def _configured(groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
    cls = _CLASSES[config.name]
    arguments: dict[str, Any] = {"lr": config.lr, **config.args}
    if config.weight_decay is not None:
        arguments["weight_decay"] = config.weight_decay
    if config.momentum is not None:
        arguments["momentum"] = config.momentum
    accepted = inspect.signature(cls).parameters
    floating = all(p.is_floating_point() for group in groups for p in group["params"])
    if "fused" in accepted and "foreach" not in arguments and floating:  # it does not know complex numbers
        arguments.setdefault("fused", True)
    unknown = set(arguments) - set(accepted)
    if unknown:
        raise UsageError(f"optim.args has {', '.join(sorted(unknown))}, which {cls.__name__} does not take. "
                         f"It takes: {', '.join(n for n in accepted if n not in ('params', 'self'))}")
    try:
        return cls(groups, **{key: tuple(v) if isinstance(v, list) else v for key, v in arguments.items()})
    except (TypeError, ValueError) as error:
        raise UsageError(f"optim does not fit {cls.__name__}: {error}") from None


def _first_match(name: str, groups: list[GroupConfig]) -> int | None:
    return next((i for i, group in enumerate(groups) if fnmatchcase(name, group.params)), None)


def _some(names: list[str], limit: int = 8) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def base_rates(optimizer: torch.optim.Optimizer) -> list[float]:
    """Each group's learning rate before any schedule."""
    return [float(group["lr"]) for group in optimizer.param_groups]


def set_rates(optimizer: torch.optim.Optimizer, base: list[float], factor: float) -> float:
    """Set every group's rate to ``factor`` times its base; returns the first group's."""
    for group, rate in zip(optimizer.param_groups, base):
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate * factor)
        else:
            group["lr"] = rate * factor
    return base[0] * factor


def changed_settings(optimizer: torch.optim.Optimizer, initial: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Per group, the plain values that are not what they were at the start (the rate left out)."""
    return [{key: value for key, value in group.items()
             if key not in ("params", "lr") and isinstance(value, (int, float, bool, str, tuple))
             and first.get(key) != value}
            for group, first in zip(optimizer.param_groups, initial)]


def take_settings(optimizer: torch.optim.Optimizer, changed: list[Mapping[str, Any]]) -> None:
    """Take back what :func:`changed_settings` gave, also after JSON has made lists of tuples."""
    for group, values in zip(optimizer.param_groups, changed):
        group.update({key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})
