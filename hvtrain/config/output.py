"""The sections that say what is kept and shown: ``checkpoint``, ``eval`` and ``log``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from hvtrain.config.base import Mode, PositiveInt, Section, StepsOrEpochs, Text
from hvtrain.config.units import Every, StepRange


def _no_repeats(values: list[str]) -> list[str]:
    repeated = sorted({value for value in values if values.count(value) > 1})
    if repeated:
        text = f"each sink may be named once; {', '.join(repeated)} is named more often"
        raise PydanticCustomError("unit", "{text}", {"text": text})
    return values


def _yaml_off(value: Any) -> Any:
    return "off" if value is False else value  # YAML 1.1 reads a bare ``off`` as false


Console = Annotated[Literal["auto", "rich", "plain", "off"], BeforeValidator(_yaml_off)]


class CheckpointConfig(Section):
    """When the training is saved to disk, what is kept, and where it goes on from."""

    every: Every | None = Field(Every(1, "epoch", "1 epoch"), description=(
        'Interval between checkpoints: "200 steps", "1 epoch" or a time such as "10 minutes". null: none at '
        "intervals."))
    keep: PositiveInt = Field(3, description="The newest so many checkpoints are kept, older ones removed.")
    keep_every: StepsOrEpochs | None = Field(None, description=(
        'Checkpoints at these intervals are kept for good, for instance "1000 steps".'))
    best: Text | None = Field(None, description=(
        "Also keep the checkpoint that did best in this evaluation metric, for instance accuracy."))
    best_mode: Mode = Field("auto", description=(
        "Whether a larger (max) or a smaller (min) value of `best` is better; auto takes min for loss, error "
        "and perplexity, else max."))
    resume: Text = Field("auto", description=(
        "auto: go on from the run's newest sound checkpoint if there is one; never: start anew; anything "
        "else is the PATH of a checkpoint, or of a run, to go on from."))
    dir: Text | None = Field(None, description=(
        "Where checkpoints are kept. Left out: checkpoints in the run's directory."))


class EvalConfig(Section):
    """When the model is evaluated."""

    every: StepsOrEpochs | None = Field(Every(1, "epoch", "1 epoch"), description=(
        'Interval between evaluations, for instance "1 epoch" or "500 steps". null: none.'))
    ema: bool = Field(True, description=(
        "Evaluate the averaged weights when `train.ema` is set; false evaluates the plain ones."))


class LogConfig(Section):
    """What is written down and shown while training."""

    every: PositiveInt = Field(10, description="Steps between two lines of training metrics.")
    sinks: Annotated[list[Literal["jsonl", "tensorboard"]], AfterValidator(_no_repeats)] = Field(
        default_factory=lambda: ["jsonl"], description=(
            "Where metrics go: jsonl writes metrics.jsonl into the run's directory; tensorboard needs the "
            "extra of that name."))
    ledger: bool = Field(False, description=(
        "Write down which samples every worker used in every step, into the run's directory ledger; hvtrain drill "
        "proves with it that none was lost or used twice."))
    timeline: StepRange | None = Field(None, description=(
        'Steps to trace, for instance "10-20" (both included, the first step is 1): timeline.json in the run\'s '
        "directory shows what every rank computed and waited for, and which buckets were in flight. It opens in "
        "https://ui.perfetto.dev and in chrome://tracing."))
    console: Console = Field("auto", description=(
        "Output in the terminal: rich shows live progress, plain prints lines, off is silent; auto takes "
        "rich on a terminal and plain elsewhere."))
