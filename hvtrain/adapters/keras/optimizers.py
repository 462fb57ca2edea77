"""From ``optim`` in the job file to a Keras optimizer, and its state under the names of the model's variables."""

from __future__ import annotations

import inspect
from fnmatch import fnmatchcase
from typing import Any, Mapping

import keras

from hvtrain.adapters.keras.variables import Variables
from hvtrain.config.training import OptimConfig
from hvtrain.errors import UsageError, UserCodeError
from hvtrain.task import Task

_CLASSES = {
    "sgd": keras.optimizers.SGD, "adam": keras.optimizers.Adam, "adamw": keras.optimizers.AdamW,
    "rmsprop": keras.optimizers.RMSprop, "adagrad": keras.optimizers.Adagrad,
}


def freeze(model: keras.Model, config: OptimConfig) -> None:
    """Switch off the training of variables that a group of ``optim.groups`` freezes.

    Raises:
        UsageError: a group matches no variable, or asks for what a Keras optimizer cannot do.
    """
    names = Variables(model).trainable
    left = dict(names)
    for number, group in enumerate(config.groups):
        if not group.freeze:
            raise UsageError(f"optim.groups[{number}] has settings of its own for {group.params!r}, which Keras optimizers "
                             "do not know. With framework: keras a group can only say freeze: true")
        matched = [name for name in left if fnmatchcase(name, group.params)]
        if not matched:
            raise UsageError(f"optim.groups[{number}].params is {group.params!r}, which matches no variable that an "
                             f"earlier group has not taken. The model has: {', '.join(list(names)[:8])}")
        for name in matched:
            left.pop(name).trainable = False


def build(task: Task, variables: Variables, config: OptimConfig) -> keras.optimizers.Optimizer:
    """The task's own optimizer, or the one that ``optim`` describes, with all its variables made.

    Raises:
        UserCodeError: there is nothing to train, or the task's optimizer is none.
        UsageError: ``optim.args`` do not fit the optimizer.
    """
    trainable = list(variables.trainable.values())
    if not trainable:
        raise UserCodeError("the model has no trainable variable; see optim.groups for what is frozen")
    own = task.optimizer([{"params": trainable, "lr": config.lr}])
    if own is not None and not isinstance(own, keras.optimizers.Optimizer):
        raise UserCodeError(f"Task.optimizer gave a {type(own).__name__}; it must give a keras.optimizers.Optimizer "
                            "or None")
    if own is not None:
        _refuse_idle_settings(config)
        own = getattr(own, "inner_optimizer", own)  # of a LossScaleOptimizer: the loss is scaled by train.precision
    optimizer = own if own is not None else _configured(config)
    optimizer.build(trainable)
    return optimizer


def _refuse_idle_settings(config: OptimConfig) -> None:
    """A setting that would do nothing beside the task's own optimizer is a misunderstanding."""
    idle = [key for key in ("name", "momentum", "weight_decay", "args")
            if getattr(config, key) != getattr(OptimConfig(), key)]
    if idle:
        raise UsageError(f"the task brings its own optimizer, so optim.{idle[0]} would do nothing; leave it out, or "
                         "have Task.optimizer return None. optim.lr and optim.schedule do apply")


def _configured(config: OptimConfig) -> keras.optimizers.Optimizer:
    cls = _CLASSES[config.name]
    arguments: dict[str, Any] = {"learning_rate": config.lr, **config.args}
    if config.weight_decay is not None:
        arguments["weight_decay"] = config.weight_decay
    if config.momentum is not None:
        arguments["momentum"] = config.momentum
    accepted = inspect.signature(cls).parameters
    unknown = set(arguments) - set(accepted)
    if unknown:
        raise UsageError(f"optim has {', '.join(sorted(unknown))}, which keras.optimizers.{cls.__name__} does not take. "
                         f"It takes: {', '.join(n for n in accepted if n not in ('self', 'kwargs'))}")
    try:
        return cls(**arguments)
    except (TypeError, ValueError) as error:
        raise UsageError(f"optim does not fit keras.optimizers.{cls.__name__}: {error}") from None


class Rate:
    """The learning rate of an optimizer: its base times a factor, or a schedule of its own."""

    def __init__(self, optimizer: keras.optimizers.Optimizer, config: OptimConfig):
        self._optimizer = optimizer
        self._own = isinstance(optimizer._learning_rate, keras.optimizers.schedules.LearningRateSchedule)
        if self._own and config.schedule.name != "constant":
            raise UsageError(f"the optimizer has a learning-rate schedule of its own, so optim.schedule: "
                             f"{config.schedule.name} would do nothing; leave one of the two out")
        self.base = 0.0 if self._own else float(optimizer.learning_rate.numpy())
        self._set = self.base

    def set(self, factor: float) -> float:
        """Set the rate to ``factor`` times its base; returns it.

        Whoever has set the optimizer's rate in the meantime, as Keras's callbacks do, has set the base.
        """
        if self._own:
            return float(self._optimizer.learning_rate)
        found = float(self._optimizer.learning_rate.numpy())
        if found != self._set:
            self.base = found
        self._optimizer.learning_rate = self.base * factor
        self._set = float(self._optimizer.learning_rate.numpy())
        return self._set


def state(optimizer: keras.optimizers.Optimizer, variables: Variables) -> Mapping[str, Any]:
    """The optimizer's variables as ``variable/slot``, the learning rate left out: it follows from the step."""
    parts = {variable.path.replace("/", "_"): name for name, variable in variables.trainable.items()}
    found: dict[str, Any] = {}
    for variable in optimizer.variables:
        last = variable.path.rpartition("/")[2]
        if last == "learning_rate":
            continue
        # keras/src/optimizers/base_optimizer.py, add_variable_from_reference: OPTIMIZER/MODEL_LAYER_KERNEL_SLOT
        owner = max((part for part in parts if last.startswith(part + "_")), key=len, default=None)
        name = f"{parts[owner]}/{last[len(owner) + 1:]}" if owner is not None else last
        base, number = name, 2
        while name in found:
            name, number = f"{base}~{number}", number + 1
        found[name] = variable
    return found
