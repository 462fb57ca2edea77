"""Learning-rate schedules as pure functions of the step: a replayed step has the same rate.

All give a factor of the base rate. Warm-up rises linearly over ``warmup`` steps, the rest follows::

    factor  1 |    ____                 constant, cosine, linear, step
              |   /    `--__
        final |  /           `--__
              +-/-----------------`--> step
"""

from __future__ import annotations

import math
from typing import Callable

from hvtrain.config.training import ScheduleConfig

Schedule = Callable[[int], float]


def make(config: ScheduleConfig, total_steps: int, steps_per_epoch: int) -> Schedule:
    """The factor of the learning rate in step ``k`` (from 0) of ``total_steps``."""
    warmup = min(config.warmup.resolve(total_steps, steps_per_epoch), total_steps)
    span = max(1, total_steps - warmup)

    def linear(done: int) -> float:
        return 1 - (1 - config.final) * min(1.0, done / span)

    def cosine(done: int) -> float:
        return config.final + (1 - config.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done / span)))

    def steps(done: int) -> float:
        assert config.every is not None
        every = int(config.every.count) * (steps_per_epoch if config.every.unit == "epoch" else 1)
        return config.factor ** ((done + warmup) // every)

    after = {"constant": lambda done: 1.0, "linear": linear, "cosine": cosine, "step": steps}[config.name]

    def factor(step: int) -> float:
        return (step + 1) / (warmup + 1) if step < warmup else after(step - warmup)

    return factor
