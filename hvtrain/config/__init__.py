"""The job file: ``load`` reads and checks it, ``Job`` is what it says, ``dump`` and ``schema`` write it down.

    job = hvtrain.config.load("config.yaml", ["optim.lr=1e-3"])
"""

from hvtrain.config.dumping import dump, schema
from hvtrain.config.job import ImpossibleJob, Job
from hvtrain.config.loading import load
from hvtrain.config.output import CheckpointConfig, EvalConfig, LogConfig
from hvtrain.config.runtime import CommConfig, ElasticConfig, LaunchConfig
from hvtrain.config.task import DataConfig, RunConfig, TaskConfig
from hvtrain.config.training import EarlyStoppingConfig, GroupConfig, OptimConfig, ScheduleConfig, TrainConfig
from hvtrain.config.units import Duration, Every, StepRange, Steps

__all__ = [
    "CheckpointConfig", "CommConfig", "DataConfig", "Duration", "EarlyStoppingConfig", "ElasticConfig",
    "EvalConfig", "Every", "GroupConfig", "ImpossibleJob", "Job", "LaunchConfig", "LogConfig", "OptimConfig",
    "RunConfig", "ScheduleConfig", "StepRange", "Steps", "TaskConfig", "TrainConfig", "dump", "load", "schema",
]
