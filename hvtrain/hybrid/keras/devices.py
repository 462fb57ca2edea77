"""The devices of a worker's stages: GPUs, or parts of the processor that TensorFlow takes for devices of their own."""

from __future__ import annotations

import re
from typing import Sequence

import tensorflow as tf

from hvtrain.config.hybrid import HybridConfig
from hvtrain.errors import EnvironmentNotReady, UsageError


EXACT = {"remapping": False, "arithmetic_optimization": False, "constant_folding": False}
"""Of TensorFlow's optimisations of graphs, those that round differently: whether they apply depends on where a model is
cut."""


def take(hybrid: HybridConfig, stages: int, threads: int, local_rank: int) -> list[str]:
    """TensorFlow's name of each stage's device, made ready. Only before TensorFlow's first operation.

    ``auto`` gives worker ``local_rank`` the GPUs from ``local_rank * stages`` on; where there are none, each stage gets
    a logical device of the processor, which share ``threads`` threads.

    Raises:
        UsageError: there are no such devices.
        EnvironmentNotReady: TensorFlow is at work already, with other devices.
    """
    names = _names(hybrid, stages, local_rank)
    numbers = [int(match[1]) for match in (re.fullmatch(r"GPU:(\d+)", name) for name in names) if match]
    gpus = tf.config.list_physical_devices("GPU")
    if any(number >= len(gpus) for number in numbers):
        raise UsageError(f"hybrid.devices names GPU {max(numbers)}, but TensorFlow sees {len(gpus)} of them. Set "
                         "hybrid.devices=cpu, or to the devices that are there")
    wanted = sorted(set(numbers))
    cpus = max([1, *(int(name[4:]) + 1 for name in names if name.startswith("CPU:"))])
    try:
        tf.config.threading.set_intra_op_parallelism_threads(max(1, threads // stages))
        tf.config.threading.set_inter_op_parallelism_threads(stages)
    except RuntimeError:  # at work already: the threads stay as they are
        pass
    try:
        if gpus:
            tf.config.set_visible_devices([gpus[number] for number in wanted], "GPU")
            for number in wanted:
                tf.config.experimental.set_memory_growth(gpus[number], True)
        processor = tf.config.list_physical_devices("CPU")[0]
        if len(tf.config.get_logical_device_configuration(processor) or [None]) < cpus:
            tf.config.set_logical_device_configuration(processor, [tf.config.LogicalDeviceConfiguration()] * cpus)
    except RuntimeError:
        pass
    tf.config.optimizer.set_experimental_options(EXACT)
    names = [f"GPU:{wanted.index(int(name[4:]))}" if name.startswith("GPU:") else name for name in names]
    there = {device.name.replace("/device:", "") for device in tf.config.list_logical_devices()}
    missing = [name for name in names if name not in there]
    if missing:
        raise EnvironmentNotReady(f"stages need the devices {', '.join(names)}, but TensorFlow is at work already, without "
                                  f"{missing[0]}.", "nothing of TensorFlow may run before the worker does: move it into the "
                                  "task's methods")
    return [f"/{name}" for name in names]


def _names(hybrid: HybridConfig, stages: int, local_rank: int) -> Sequence[str]:
    """As TensorFlow has them, but GPUs by their numbers on the host."""
    if isinstance(hybrid.devices, list):
        return [_name(text, number) for number, text in enumerate(hybrid.devices)]
    gpus = len(tf.config.list_physical_devices("GPU")) if hybrid.devices == "auto" else 0
    if not gpus:
        return [f"CPU:{number}" for number in range(stages)]
    first = local_rank * stages
    if first + stages > gpus:
        raise UsageError(f"worker {local_rank} of this host needs the GPUs {first} to {first + stages - 1} for its {stages} "
                         f"stages, but there are {gpus}. Start fewer workers, or set hybrid.stages={max(1, gpus)} or "
                         "hybrid.devices=cpu")
    return [f"GPU:{number}" for number in range(first, first + stages)]


def _name(text: str, stage: int) -> str:
    match = re.fullmatch(r"(cuda|gpu|cpu)(?::(\d+))?", text.strip().lower())
    if match is None:
        raise UsageError(f"hybrid.devices has {text!r}; a device is cuda:0, gpu:0, cpu or cpu:0")
    return f"CPU:{match[2] or stage}" if match[1] == "cpu" else f"GPU:{match[2] or 0}"
