"""Which links run on which device, and which variables lie there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Sequence

import keras
import tensorflow as tf

from hvtrain.config import Job
from hvtrain.errors import UsageError
from hvtrain.hybrid import splits
from hvtrain.hybrid.keras.links import Chain, Link
from hvtrain.hybrid.openings import unsettled


@dataclass(frozen=True)
class Stage:
    """The links from number ``first`` on that run on ``device``."""

    number: int
    device: str
    first: int
    links: tuple[Link, ...]


def settled(job: Job) -> list[int]:
    """The number of links in each stage. Raises UsageError if that is still to be found."""
    hybrid = job.hybrid
    assert hybrid is not None
    if not isinstance(hybrid.stages, int) or not isinstance(hybrid.microbatches, int) or hybrid.split is None:
        raise unsettled(hybrid)
    return list(hybrid.split)


def cut(chain: Chain, split: Sequence[int], devices: Sequence[str]) -> list[Stage]:
    """``split[k]`` links for stage k. Raises UsageError if it is not about this chain."""
    if len(split) != len(devices):
        raise UsageError(f"hybrid.split makes {len(split)} stages, but there are {len(devices)} devices")
    splits.check(split, chain.names)
    stages, first = [], 0
    for number, (count, device) in enumerate(zip(split, devices)):
        stages.append(Stage(number, device, first, chain.links[first:first + count]))
        first += count
    return stages


def owners(stages: Sequence[Stage], variables: Sequence[Any]) -> list[int]:
    """The stage in which each of ``variables`` lies: the first one that uses it, whose backward pass is the last.

    What no layer holds lies in the first.
    """
    found: dict[int, int] = {}
    for stage in stages:
        for link in stage.links:
            for variable in link.variables:
                found.setdefault(id(variable), stage.number)
    return [found.get(id(variable), 0) for variable in variables]


def place(variables: Sequence[keras.Variable], devices: Sequence[str]) -> None:
    """Move each variable onto a device. Before anything has been traced with it."""
    for variable, device in zip(variables, devices):
        value = variable.value
        if tf.DeviceSpec.from_string(value.device) != tf.DeviceSpec.from_string(value.device).make_merged_spec(
                tf.DeviceSpec.from_string(device)):
            with tf.device(device):
                variable._initialize(tf.Variable(  # Keras has no public way to move a variable (3.15)
                    value, dtype=value.dtype, trainable=value.trainable, name=variable.name))
