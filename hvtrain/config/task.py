"""The sections that say what is trained on what: ``run``, ``task`` and ``data``."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from hvtrain.config.base import PositiveInt, Section, Text

_TARGET = re.compile(r"(?:[^\W\d]\w*(?:\.[^\W\d]\w*)*|[^:]*\.py):[^\W\d]\w*(?:\.[^\W\d]\w*)*")


def _check_target(value: str) -> str:
    if not _TARGET.fullmatch(value):
        raise PydanticCustomError("unit", "{text}", {"text": (
            'expected "module:attribute", "package.module:attribute" or "file.py:attribute", '
            f"got '{value}'")})
    return value


def _check_script(value: str) -> str:
    if not value.endswith(".py"):
        raise PydanticCustomError("unit", "{text}", {"text": f"expected a Python script such as train.py, got '{value}'"})
    return value


class RunConfig(Section):
    """Where the run is kept, and the seed that all its randomness comes from."""

    dir: Text = Field("runs/job", description=(
        "Directory of this run, relative to the current directory: resolved config, metrics, logs, "
        "checkpoints. Left out, it is runs/NAME, NAME being the job file's name (its folder's if the file is "
        "called config.yaml or job.yaml)."))
    seed: int = Field(0, ge=0, lt=2**63, description=(
        "Seed of everything random: initial weights, order of the samples, augmentation, dropout. The same "
        "seed, job and number of workers give the same weights bit for bit."))
    name: Text | None = Field(None, description=(
        "A name for people, shown in reports; the run's directory if left out."))


class TaskConfig(Section):
    """The user's code: what makes the model, the data and the loss. `target` or `script`, one of the two."""

    target: Annotated[Text, AfterValidator(_check_target)] | None = Field(None, description=(
        'Your task, as "module:attribute", "package.module:attribute" or "file.py:attribute"; found beside '
        "the job file first, then among the installed packages. A class or function is called with `args`."))
    script: Annotated[Text, AfterValidator(_check_script)] | None = Field(None, description=(
        "Instead of `target`: a Python script, which every worker runs; it trains by hvtrain.keras.fit, "
        "hvtrain.torch.fit or hvtrain.Trainer. `hvtrain run train.py` fills it in."))
    args: dict[str, Any] = Field(default_factory=dict, description=(
        "Keyword arguments for `target`, for instance {width: 32}."))


class DataConfig(Section):
    """How samples become batches."""

    global_batch: PositiveInt = Field(64, description=(
        "Samples per optimizer step over all workers together. It stays the same when the number of workers "
        "changes, so the learning rate needs no change either."))
    micro_batch: PositiveInt | None = Field(None, description=(
        "At most so many samples go through a worker's model at once; a larger share of the global batch is "
        "accumulated in several passes, with the same result. Left out: the whole share at once."))
    workers: int = Field(0, ge=0, description=(
        "Threads per worker that load samples ahead of the training; 0 loads them in the training thread."))
    prefetch: PositiveInt = Field(2, description=(
        "Batches that the loading threads keep ready ahead of the training."))
    sampling: Literal["uniform", "weighted", "balanced"] = Field("uniform", description=(
        "uniform: every sample exactly once per epoch; weighted: drawn with replacement by the task's sample "
        "weights; balanced: drawn so that every class is equally likely."))
    shuffle: bool = Field(True, description=(
        "A new order of the samples in each epoch; false keeps the data's own order."))
    drop_last: bool = Field(False, description=(
        "Leave out the short last batch of an epoch; false trains on it too, with exact weighting."))
    eval_batch: PositiveInt | None = Field(None, description=(
        "Samples per worker and pass in evaluation. Left out: `micro_batch`, or else `global_batch`."))
