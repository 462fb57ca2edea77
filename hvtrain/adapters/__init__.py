"""Framework adapters. What the loop sees is the protocol in :mod:`hvtrain.adapters.base`."""

from __future__ import annotations

import importlib
import importlib.util
import os

from hvtrain.errors import EnvironmentNotReady, UserCodeError
from hvtrain.task import Task

_MODULES = {
    # The first optimizer step imports torch._dynamo (torch 2.x, torch/optim/optimizer.py), which takes over a
    # second: better once before forking than in every worker.
    "torch": ("torch", "torch._dynamo", "horovod.torch"),
    "keras": ("tensorflow", "keras", "horovod.tensorflow"),
    "numpy": (),  # nothing but what Horovod was built for
}
_COMMANDS = {"torch": "pip install torch==2.13.0", "keras": "pip install tensorflow-cpu==2.21.0"}


def import_framework(framework: str) -> None:
    """Import a framework, its adapter, and Horovod's binding for it where that is installed (one worker does without).

    Raises:
        EnvironmentNotReady: the framework is not installed, or this version has no adapter for it.
    """
    if framework not in _MODULES:
        raise EnvironmentNotReady(f"this version of hvtrain has no adapter for {framework}.")
    if framework == "numpy":
        if importlib.util.find_spec("horovod") is not None:
            from hvtrain.engine import horovod_numpy

            horovod_numpy.operations()
        importlib.import_module("hvtrain.adapters.reference")
        return
    if framework == "keras" and os.environ.setdefault("KERAS_BACKEND", "tensorflow") != "tensorflow":
        raise EnvironmentNotReady(f"framework: keras needs Keras on TensorFlow, but KERAS_BACKEND is "
                                  f"{os.environ['KERAS_BACKEND']!r}.", "export KERAS_BACKEND=tensorflow")
    name, *more, binding = _MODULES[framework]
    if importlib.util.find_spec(name) is None:
        raise EnvironmentNotReady(f"the job needs {name}, which is not installed.", _COMMANDS[framework])
    for module in (name, *more):
        importlib.import_module(module)
    if importlib.util.find_spec("horovod") is not None:
        importlib.import_module(binding)
    importlib.import_module(f"hvtrain.adapters.{framework}.adapter")


def prepare(framework: str, *, seed: int, threads: int, local_rank: int = 0) -> None:
    """Before code of a user's own makes models: seed all random numbers, and bound the threads that are computed with."""
    import random

    import numpy as np

    random.seed(seed)
    np.random.seed(seed % 2**32)
    if framework == "torch":
        import torch

        torch.manual_seed(seed)
        torch.set_num_threads(threads)
    elif framework == "keras":
        import keras

        from hvtrain.adapters.keras.whole import take_devices

        take_devices(threads, local_rank)
        keras.utils.set_random_seed(seed % 2**32)


def make(framework: str, **parts):
    """The adapter for ``framework``; see :class:`hvtrain.adapters.base.Adapter` for what it does.

    Raises:
        UserCodeError: the task has something that this framework's adapter would not call.
        EnvironmentNotReady: there is no adapter for it.
    """
    if framework != "keras" and getattr(type(parts.get("task")), "pipeline", Task.pipeline) is not Task.pipeline:
        raise UserCodeError(f"the task has a pipeline, which is for framework: keras, but this job's is {framework}. Augment "
                            "within the data set instead: sample(index, rng), see hvtrain/data/sources.py")
    if framework == "torch":
        from hvtrain.adapters.torch.adapter import TorchAdapter

        return TorchAdapter(**parts)
    if framework == "keras":
        # What it has to say of processor instructions belongs into no script's console. Heard only if it comes before
        # the import: in the workers of `hvtrain run` all of it goes to their logs.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
        from hvtrain.adapters.keras.adapter import KerasAdapter

        return KerasAdapter(**parts)
    if framework == "numpy":
        from hvtrain.adapters.reference import ReferenceAdapter

        return ReferenceAdapter(**parts)
    raise EnvironmentNotReady(f"this version of hvtrain has no adapter for {framework}.")
