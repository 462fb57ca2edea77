"""From ``optim`` in the job file to a Keras optimizer, and its state under the names of the model's variables."""

from __future__ import annotations

import inspect
from fnmatch import fnmatchcase
from typing import Any, Mapping, Sequence

import keras

from hvtrain.adapters.keras import refusals
from hvtrain.adapters.keras.variables import Variables, array
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
            raise UsageError(f"optim.groups[{number}] has settings of its own for {group.params!r}, which Keras "
                             "optimizers do not know. With framework: keras a group can only say freeze: true")
        matched = [name for name in left if fnmatchcase(name, group.params)]
        if not matched:
            raise UsageError(f"optim.groups[{number}].params is {group.params!r}, which matches no variable that an "
                             f"earlier group has not taken. The model has: {', '.join(list(names)[:8])}")
        for name in matched:
            left.pop(name).trainable = False


def build(task: Task, variables: Variables, config: OptimConfig, precision: str = "fp32") -> keras.optimizers.Optimizer:
    """The task's own optimizer, or the one that ``optim`` describes, with all its variables made.

    A LossScaleOptimizer's inner one is taken: the loss is scaled by ``precision`` (train.precision).

    Raises:
        UserCodeError: there is nothing to train, or the task's optimizer is none.
        UsageError: ``optim.args`` do not fit the optimizer, or it has settings that would be wrong here.
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
    optimizer = own if own is not None else _configured(config)
    refusals.check_optimizer(optimizer, precision)
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
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
        raise UsageError(f"optim has {', '.join(sorted(unknown))}, which keras.optimizers.{cls.__name__} does not "
                         f"take. It takes: {', '.join(n for n in accepted if n not in ('self', 'kwargs'))}")
    try:
        return cls(**arguments)
    except (TypeError, ValueError) as error:
        raise UsageError(f"optim does not fit keras.optimizers.{cls.__name__}: {error}") from None


class Rate:
    """The learning rate of an optimizer: its base times a factor, or a schedule of its own.

    Args:
        rescaled: whether elastic.lr_scaling is to move it with the number of workers.

    Raises:
        UsageError: the optimizer has a schedule of its own, and the job asks for another, or for rescaling.
    """

    def __init__(self, optimizer: keras.optimizers.Optimizer, config: OptimConfig, rescaled: bool = False):
        self._optimizer = optimizer
        self._own = not isinstance(optimizer._learning_rate, keras.Variable)
        if self._own and config.schedule.name != "constant":
            raise UsageError(f"the optimizer has a learning-rate schedule of its own, so optim.schedule: "
                             f"{config.schedule.name} would do nothing; leave one of the two out")
        if self._own and rescaled:
            raise UsageError("the optimizer has a learning-rate schedule of its own, which elastic.lr_scaling cannot "
                             "scale when the number of workers changes. Use optim.schedule instead, or "
                             "elastic.lr_scaling=none")
        self.base = 0.0 if self._own else self._now()
        self._set = self._asked = self.base

    def read(self) -> float:
        """The base. Whoever has set the optimizer's rate in the meantime, as Keras's callbacks do, has set it."""
        found = self._set if self._own else self._now()
        if found != self._set:
            self.base = self._set = self._asked = found
        return self.base

    def take(self, base: float) -> None:
        """Take over the base of another worker or of a checkpoint."""
        self.base = base
        if not self._own:
            self._assign(base)

    def set(self, factor: float) -> float:
        """Set the rate to ``factor`` times its base; returns it."""
        if self._own:
            return float(self._optimizer.learning_rate)
        wanted = self.read() * factor
        if wanted != self._asked:
            self._assign(wanted)
        return self._set

    def _assign(self, rate: float) -> None:
        self._optimizer.learning_rate = self._asked = rate
        self._set = self._now()

    def _now(self) -> float:
        return array(self._optimizer._learning_rate, copy=False).item()


def state(optimizer: keras.optimizers.Optimizer, variables: Variables) -> Mapping[str, Any]:
    """The optimizer's variables as ``variable/slot``, or ``slot`` where one serves all variables.

    The slot is named as Keras names it (``momentum``), else after the attribute that holds it (Adafactor's ``r``). The
    learning rate is left out: it follows from the step.
    """
    holders = _holders(optimizer, list(variables.trainable))
    paths = {name: variable.path.replace("/", "_") for name, variable in variables.trainable.items()}
    found: dict[str, Any] = {}
    for variable in optimizer.variables:
        if variable is optimizer._learning_rate:
            continue
        # keras/src/optimizers/base_optimizer.py, add_variable_from_reference: OPTIMIZER/MODEL_LAYER_KERNEL_SLOT
        called = variable.path.rpartition("/")[2]
        owner, slot = holders.get(id(variable), (None, called))
        if owner is None:
            owner = max((name for name, path in paths.items() if called.startswith(path + "_")),
                        key=lambda name: len(paths[name]), default=None)
        if owner is not None and called.startswith(paths[owner] + "_"):
            slot = called[len(paths[owner]) + 1:]
        base = name = f"{owner}/{slot}" if owner is not None else slot
        number = 2
        while name in found:
            name, number = f"{base}~{number}", number + 1
        found[name] = variable
    return found


def _holders(optimizer: keras.optimizers.Optimizer, trainable: Sequence[str]) -> dict[int, tuple[str | None, str]]:
    """By identity: the model's variable that one of the optimizer's goes with, and the attribute that it lies in."""
    found: dict[int, tuple[str | None, str]] = {}
    for attribute, value in vars(optimizer).items():
        if isinstance(value, keras.Variable):
            found[id(value)] = None, attribute.strip("_")
        # Lists of slots are in the order of the variables that the optimizer was built with.
        elif isinstance(value, (list, tuple)) and len(value) == len(trainable) and value is not optimizer._variables:
            for owner, slot in zip(trainable, value):
                if isinstance(slot, keras.Variable):
                    found[id(slot)] = owner, attribute.strip("_")
    return found
