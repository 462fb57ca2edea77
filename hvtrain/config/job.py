"""The job: everything that a ``config.yaml`` says, typed and checked."""

from __future__ import annotations

from typing import Literal, Union

from pydantic import Field, model_validator

from hvtrain.config.base import Section
from hvtrain.config.hybrid import HybridConfig
from hvtrain.config.output import CheckpointConfig, EvalConfig, LogConfig
from hvtrain.config.rules import Conflict, conflicts
from hvtrain.config.runtime import CommConfig, ElasticConfig, LaunchConfig
from hvtrain.config.task import DataConfig, RunConfig, TaskConfig
from hvtrain.config.training import OptimConfig, TrainConfig


class ImpossibleJob(ValueError):
    """Values that are fine one by one contradict each other; ``conflicts`` holds every contradiction."""

    def __init__(self, found: list[Conflict]):
        self.conflicts = found
        super().__init__("; ".join(f"{conflict.key}: {conflict.message}" for conflict in found))


class Job(Section):
    """A training job for hvtrain. Only `task.target` (or `task.script`) is required."""

    version: Literal[1] = Field(1, description="Version of this file format.")
    framework: Literal["torch", "keras", "numpy"] = Field("torch", description=(
        "The framework that the task is written for. numpy: the reference; for tests and for models with hand-written "
        "gradients."))
    run: RunConfig = Field(default_factory=RunConfig, description="Where the run is kept, and its seed.")
    task: TaskConfig = Field(description="Your code: model, data and loss.")
    data: DataConfig = Field(default_factory=DataConfig, description="From samples to batches.")
    train: TrainConfig = Field(default_factory=TrainConfig, description="How long and with which safeguards.")
    optim: OptimConfig = Field(default_factory=OptimConfig, description="Optimizer and learning rate.")
    comm: CommConfig = Field(default_factory=CommConfig, description="The exchange of gradients.")
    hybrid: Union[HybridConfig, None] = Field(None, description=(
        "Layers partitioned over the devices of each worker. Left out: every worker has the whole model on one device."))
    elastic: ElasticConfig = Field(default_factory=ElasticConfig, description=(
        "Bounds on the number of workers."))
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig, description=(
        "When to save, what to keep, where to go on from."))
    eval: EvalConfig = Field(default_factory=EvalConfig, description="When to evaluate.")
    log: LogConfig = Field(default_factory=LogConfig, description="What is written down and shown.")
    launch: LaunchConfig = Field(default_factory=LaunchConfig, description=(
        "How workers are started on this machine."))

    @model_validator(mode="after")
    def _possible(self) -> "Job":
        found = conflicts(self)
        if found:
            raise ImpossibleJob(found)
        return self
