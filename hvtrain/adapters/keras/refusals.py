"""What would train, but not as it was asked for, is refused before the first step."""

from __future__ import annotations

from typing import Any

import keras

from hvtrain.errors import UsageError, UserCodeError

_COMPUTES = {"bf16": "bfloat16", "fp16": "float16"}


def check_model(model: keras.Model, precision: str) -> None:
    """Refuse a model that does not compute as ``precision`` (train.precision) says, or wants sums of its own.

    Raises:
        UsageError, UserCodeError: with what to change.
    """
    layers = model._flatten_layers()
    wanted = _COMPUTES.get(precision)
    if wanted is not None and not any(layer.compute_dtype == wanted for layer in layers):
        raise UsageError(f"train.precision is {precision}, but no layer of the model computes in {wanted}: it was "
                         "built before that was known. Build it within Task.model, or after "
                         f"keras.config.set_dtype_policy('mixed_{wanted}')")
    for layer in layers:
        if precision != "fp16" and _policy(layer) == "mixed_float16":
            raise UsageError(f"the layer {layer.name!r} computes in float16, but train.precision is {precision}, so "
                             "that nothing would scale the loss and small gradients would vanish. Set "
                             "train.precision=fp16")
        if getattr(layer, "synchronized", False):
            raise UserCodeError(f"the layer {layer.name!r} is to normalise over the batches of all workers "
                                "(synchronized=True), which works under tf.distribute alone. Leave it out: the moving "
                                "statistics are averaged over the workers all the same")
    for variable in model.trainable_variables:
        if getattr(variable, "overwrite_with_gradient", False):
            raise UserCodeError(f"the variable {variable.path!r} is overwritten by its gradient (float8 training), "
                                "which cannot be added up over workers")


def check_optimizer(optimizer: Any, precision: str) -> None:
    """Refuse settings of the task's own optimizer that would be wrong or idle here.

    Raises:
        UsageError: with what to set instead.
    """
    if hasattr(optimizer, "inner_optimizer"):
        if precision != "fp16":
            raise UsageError("Task.optimizer gave a LossScaleOptimizer, but the loss is scaled by train.precision=fp16 "
                             f"alone, which is {precision}. Set that, or give the inner optimizer")
        optimizer = optimizer.inner_optimizer
    if isinstance(optimizer, getattr(keras.optimizers, "MultiOptimizer", ())):
        raise UsageError("Task.optimizer gave a MultiOptimizer, which has no learning rate that optim.schedule could "
                         "move. Give one optimizer; optim.groups can freeze variables")
    if optimizer.loss_scale_factor is not None:
        raise UsageError("the optimizer's loss_scale_factor divides gradients of a loss that nothing has multiplied. "
                         "Leave it out, and set train.precision=fp16 where the loss is to be scaled")
    if optimizer.use_ema:
        raise UsageError("the optimizer's use_ema keeps averages that would be neither evaluated nor exported. Leave "
                         "it out, and set train.ema to its ema_momentum")


def _policy(layer: Any) -> str:
    policy = layer.dtype_policy
    return getattr(policy, "name", str(policy))
