"""Which variable of a Keras model is what, under names that do not depend on what was built before.

A name is the variable's path in the model, as Keras has it (``variable.path``): ``sequential/dense/kernel``. Names that
Keras itself gives to layers (``dense_7``) are counted over everything that a process has built; here they are counted
over the model alone, in its own order: ``dense``, ``dense_1``, ... A path that occurs twice gets ``~2``. Slots of the
optimizer are ``variable/slot`` (``sequential/dense/kernel/momentum``); see optimizers.py.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import Any, Iterable, Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf
from keras.src.random.seed_generator import global_seed_generator  # it has no public name (Keras 3.15)

from hvtrain.checkpoint.blob import Blob
from hvtrain.errors import CheckpointDamaged, UserCodeError

_SEED = "seed_generator_state"
_NORMAL = (keras.layers.BatchNormalization,)


def _layers(model: keras.Model) -> list[Any]:
    return list(model._flatten_layers())


def built(model: keras.Model) -> bool:
    """Whether all variables are there already; the rest comes with the first call."""
    return all(layer.built for layer in _layers(model))


def _snake(name: str) -> str:
    """Keras's own naming of layers (keras/src/utils/naming.py): BatchNormalization -> batch_normalization."""
    name = re.sub(r"\W+", "", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)).lower()


def _renamed(layers: Iterable[Any]) -> dict[str, str]:
    """Names that Keras counted up over everything built in this process (dense_7), counted over this model alone."""
    counts: dict[str, int] = {}
    names: dict[str, str] = {}
    for layer in layers:
        base = _snake(type(layer).__name__)
        if layer.name not in names and re.fullmatch(rf"{re.escape(base)}(_\d+)?", layer.name):
            number = counts.get(base, 0)
            counts[base] = number + 1
            names[layer.name] = f"{base}_{number}" if number else base
    return names


class Variables:
    """The variables of a built ``model`` by stable name, each once.

    ``trainable`` are those that gradients are for; ``seeds`` the states of random number generators, Keras's global one
    included, which are set anew in every step; ``others`` all the rest: statistics of normalisation layers, frozen
    weights, counters.
    """

    def __init__(self, model: keras.Model):
        layers = _layers(model)
        renamed = _renamed(layers)
        self.names: dict[int, str] = {}
        taken: set[str] = set()
        for variable in model.variables:
            if id(variable) in self.names:
                continue
            base = name = "/".join(renamed.get(part, part) for part in variable.path.split("/"))
            number = 2
            while name in taken:
                name, number = f"{base}~{number}", number + 1
            taken.add(name)
            self.names[id(variable)] = name
        self.trainable = self._named(model.trainable_variables)
        self.seeds = [v for v in model.non_trainable_variables if v.path.endswith(_SEED)]
        self.seeds.append(global_seed_generator().state)  # of what draws without a generator of its own
        seeds = {id(variable) for variable in self.seeds}
        trainable = {id(variable) for variable in self.trainable.values()}
        self.others = {name: v for name, v in self._named(model.variables).items()
                       if id(v) not in seeds and id(v) not in trainable}
        self.weights = {**self.trainable, **self.others}
        self._normal = {id(v) for layer in layers if isinstance(layer, _NORMAL) for v in layer.non_trainable_variables}

    def check_complete(self, model: keras.Model) -> None:
        """Raise UserCodeError if ``model`` has made further variables since."""
        new = [variable.path for variable in model.variables if id(variable) not in self.names]
        if new:
            raise UserCodeError(f"the model made the variables {', '.join(map(repr, new[:3]))} in its first training "
                                "step, after the optimizer's were made. Make them in build(), or in __init__ of their "
                                "layer")

    def statistics(self, changed: Sequence[str], patterns: Sequence[str]) -> dict[str, Any]:
        """Of ``others``, what is averaged over the ranks: what normalisation layers keep, and what ``patterns`` match.

        Raises:
            UserCodeError: the forward pass has ``changed`` another one, so that the ranks' copies would drift apart.
        """
        found = {name: v for name, v in self.others.items() if _floating(v) and (
            id(v) in self._normal or any(fnmatchcase(name, pattern) for pattern in patterns))}
        for name in changed:
            if name in self.trainable:
                raise UserCodeError(f"the forward pass changes the trainable variable {name!r}, which only the "
                                    "optimizer may: a step that a lost worker breaks off must leave the weights as "
                                    "they were")
            if name not in found:
                dtype = self.others[name].dtype
                remedy = (f"Have it averaged: averaged_buffers = [{name!r}] in your Task"
                          if _floating(self.others[name]) else
                          f"It holds {dtype}, which cannot be averaged: make it a floating-point variable")
                raise UserCodeError(f"the forward pass changes the variable {name!r}, which only normalisation layers' "
                                    "variables may without further notice, because the ranks' copies would drift "
                                    f"apart. {remedy}")
        return found

    def _named(self, variables: Iterable[Any]) -> dict[str, Any]:
        return {self.names[id(variable)]: variable for variable in variables}


def _floating(variable: Any) -> bool:
    return "float" in str(variable.dtype)


def beside(variable: Any) -> tf.Variable:
    """A variable with the same content, on the same device."""
    with tf.device(variable.value.device):
        return tf.Variable(variable.value, trainable=False)


def array(variable: Any, copy: bool = True) -> np.ndarray:
    """A variable's content; without ``copy`` it may share the variable's memory."""
    return variable.value.numpy() if copy else variable.value.value()._numpy()


def export(variables: Mapping[str, Any], copy: bool = True) -> dict[str, Blob]:
    """Named variables as blobs. Without ``copy`` they may share memory: good until a variable is changed."""
    return {name: Blob.from_numpy(array(variable, copy)) for name, variable in variables.items()}


def restore(variables: Mapping[str, Any], blobs: Mapping[str, Blob], what: str) -> None:
    """Overwrite named variables. Raises CheckpointDamaged if names or shapes differ."""
    missing, foreign = sorted(set(variables) - set(blobs)), sorted(set(blobs) - set(variables))
    if missing or foreign:
        raise CheckpointDamaged(
            f"the checkpoint does not fit this {what}: it lacks {missing[:3] or 'nothing'} and has "
            f"{foreign[:3] or 'nothing'} beside. Was task.args changed since? Start over with checkpoint.resume=never, "
            "or undo the change")
    for name, variable in variables.items():
        if tuple(variable.shape) != blobs[name].shape:
            raise CheckpointDamaged(f"the checkpoint's {name!r} has shape {blobs[name].shape}, the model's "
                                    f"{tuple(variable.shape)}. Was task.args changed since? Start over with "
                                    "checkpoint.resume=never")
    for name, variable in variables.items():
        variable.assign(blobs[name].to_numpy())
