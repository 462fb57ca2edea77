"""Framework adapters. What the loop sees is the protocol in :mod:`hvtrain.adapters.base`."""

from __future__ import annotations

import importlib
import importlib.util
import os

from hvtrain.errors import EnvironmentNotReady

_MODULES = {
    # The first optimizer step imports torch._dynamo (torch 2.x, torch/optim/optimizer.py), which takes over a
    # second: better once before forking than in every worker.
    "torch": ("torch", "torch._dynamo", "horovod.torch"),
    "keras": ("tensorflow", "keras", "horovod.tensorflow"),
}
_COMMANDS = {"torch": "pip install torch==2.13.0", "keras": "pip install tensorflow-cpu==2.21.0"}


def import_framework(framework: str) -> None:
    """Import a framework and Horovod's binding for it, where that is installed (one worker does without).

    Raises:
        EnvironmentNotReady: the framework is not installed, or this version has no adapter for it.
    """
    if framework not in _MODULES:
        raise EnvironmentNotReady(f"this version of hvtrain has no adapter for {framework}.")
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


def make(framework: str, **parts):
    """The adapter for ``framework``; see :class:`hvtrain.adapters.base.Adapter` for what it does."""
    if framework == "torch":
        from hvtrain.adapters.torch.adapter import TorchAdapter

        return TorchAdapter(**parts)
    if framework == "keras":
        from hvtrain.adapters.keras.adapter import KerasAdapter

        return KerasAdapter(**parts)
    raise EnvironmentNotReady(f"this version of hvtrain has no adapter for {framework}.")
