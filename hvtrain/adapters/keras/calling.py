"""How a Keras model is called with what ``Task.inputs`` gives."""

from __future__ import annotations

import inspect
from typing import Any

import keras

from hvtrain.task import Task

_CONTEXT = ("training", "mask")


def forward(task: Task, model: keras.Model, batch: Any, training: bool) -> Any:
    """``model``'s outputs for ``batch``."""
    return called(task, model, model_inputs(task, model, batch), training)


def called(task: Task, model: keras.Model, inputs: Any, training: bool) -> Any:
    """``model``'s outputs for ``inputs``, as :func:`model_inputs` gives them.

    Sequential and functional models take their inputs as they are: Keras itself sorts tuples and dictionaries. So do
    subclassed models, unless their ``call`` has an argument for each: then a tuple is spread over the positions, a
    dictionary over the keywords; but not with ``task.whole_inputs``.
    """
    whole = (isinstance(model, keras.Sequential) or hasattr(model, "_inputs_struct")
             or getattr(task, "whole_inputs", False))
    if not whole and isinstance(inputs, dict) and inputs and set(inputs) <= set(_parameters(model)):
        return model(**inputs, training=training)
    if not whole and isinstance(inputs, (tuple, list)) and 1 < len(inputs) <= len(_places(model)):
        return model(*inputs, training=training)
    return model(inputs, training=training)


def model_inputs(task: Task, model: keras.Model, batch: Any) -> Any:
    """What ``model`` takes of ``batch``: what ``task.inputs`` gives, without what a dictionary holds beside."""
    inputs = task.inputs(batch)
    wanted = getattr(model, "_inputs_struct", None)
    if isinstance(inputs, dict) and isinstance(wanted, dict) and set(wanted) < set(inputs):
        return {name: inputs[name] for name in wanted}  # the batch may hold targets beside
    return inputs


def _parameters(model: keras.Model) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(model.call).parameters)


def _places(model: keras.Model) -> list[str]:
    return [each.name for each in _parameters(model).values()
            if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD) and each.name not in _CONTEXT]
