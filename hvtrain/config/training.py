"""The sections that say how it is trained: ``train`` and ``optim``."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Union

from pydantic import Field, model_validator

from hvtrain.config.base import (
    Mode, Momentum, NonNegativeFloat, PositiveFloat, PositiveInt, Section, StepsOrEpochs, Text,
)
from hvtrain.config.units import Steps


class EarlyStoppingConfig(Section):
    """When to stop because the evaluation no longer gets better."""

    metric: Text = Field(description="The evaluation metric to watch, for instance loss or accuracy.")
    mode: Mode = Field("auto", description=(
        "Whether a larger (max) or a smaller (min) value is better; auto takes min for loss, error and "
        "perplexity, else max."))
    patience: PositiveInt = Field(3, description=(
        "Evaluations in a row without improvement before training stops."))
    min_delta: NonNegativeFloat = Field(0.0, description="A change counts as an improvement only above this.")


class TrainConfig(Section):
    """How long, in which precision, and with which safeguards."""

    epochs: PositiveInt | None = Field(None, description=(
        "Passes over the data. Give this or `steps`, not both; with neither, 1 epoch."))
    steps: PositiveInt | None = Field(None, description=(
        "Optimizer steps in all, counted from the start of the run, also when it was resumed."))
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description=(
        "Number format of the computation. bf16, fp16: automatic mixed precision, the weights stay float32; fp16 "
        "scales the loss so that small gradients do not vanish."))
    loss_scale: PositiveFloat = Field(65536.0, description=(
        "What the loss is multiplied by at first, for fp16 only: halved when gradients overflow, doubled after 2,000 "
        "good steps."))
    jit_compile: bool = Field(False, description=(
        "Keras only: compile forward and backward with XLA. Gradients are then reduced after backward, not beside it."))
    grad_clip: PositiveFloat | None = Field(None, description=(
        "Scale the gradient down when its global norm exceeds this. Left out: no clipping."))
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(None, description=(
        "Keep an exponential moving average of the weights with this decay per step, for instance 0.999. "
        "Left out: none."))
    early_stopping: Union[EarlyStoppingConfig, None] = Field(None, description=(
        "Stop when an evaluation metric no longer improves. Left out: train to the end."))

    @model_validator(mode="before")
    @classmethod
    def _one_epoch_by_default(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("epochs") is None and data.get("steps") is None:
            return {**data, "epochs": 1}
        return data


class ScheduleConfig(Section):
    """How the learning rate moves over the steps; it multiplies the rate of every group."""

    name: Literal["constant", "linear", "cosine", "step"] = Field("constant", description=(
        "Shape after the warm-up: constant; linear or cosine down to `final`; step multiplies by `factor` at "
        "intervals of `every`."))
    warmup: Steps = Field(Steps(0, "step"), description=(
        'Linear rise from zero at the start: "5%" of all steps, "100 steps", "1 epoch", or a number of '
        'steps.'))
    final: Annotated[float, Field(ge=0, le=1)] = Field(0.0, description=(
        "Learning rate at the end as a fraction of `lr`; for linear and cosine only."))
    every: StepsOrEpochs | None = Field(None, description=(
        'Interval between two reductions, for instance "1 epoch" or "1000 steps"; for step only, and needed '
        'there.'))
    factor: PositiveFloat = Field(0.1, description=(
        "What each reduction multiplies the rate by; for step only."))


class GroupConfig(Section):
    """Parameters that are treated differently, chosen by name."""

    params: Text = Field(description=(
        'Pattern over parameter names, for instance "backbone.*" or "*.bias"; the first group that matches a '
        "parameter has it."))
    lr: PositiveFloat | None = Field(None, description="Learning rate of the group. Left out: `optim.lr`.")
    weight_decay: NonNegativeFloat | None = Field(None, description=(
        "Weight decay of the group. Left out: `optim.weight_decay`."))
    momentum: Momentum | None = Field(None, description=(
        "Momentum of the group (sgd and rmsprop only). Left out: `optim.momentum`."))
    freeze: bool = Field(False, description="Leave these parameters as they are.")


class OptimConfig(Section):
    """The optimizer, its learning rate over time, and exceptions for some parameters."""

    name: Literal["sgd", "adam", "adamw", "rmsprop", "adagrad"] = Field("adamw", description=(
        "The optimizer; a task may bring its own instead."))
    lr: PositiveFloat = Field(1e-3, description=(
        "Peak learning rate, for the global batch whatever the number of workers."))
    weight_decay: NonNegativeFloat | None = Field(None, description=(
        "Weight decay. Left out: the optimizer's own default."))
    momentum: Momentum | None = Field(None, description=(
        "Momentum, for sgd and rmsprop only. Left out: the optimizer's own default."))
    args: dict[str, Any] = Field(default_factory=dict, description=(
        "Further keyword arguments of the optimizer class, for instance {betas: [0.9, 0.95]}."))
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig, description=(
        "How the learning rate changes over the steps."))
    groups: list[GroupConfig] = Field(default_factory=list, description=(
        "Other settings for parameters chosen by name; the first match wins."))
