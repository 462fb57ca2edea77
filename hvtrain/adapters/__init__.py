"""Framework adapters. What the loop sees is the protocol in :mod:`hvtrain.adapters.base`."""

from __future__ import annotations

import importlib
import importlib.util

from hvtrain.errors import EnvironmentNotReady

_MODULES = {
    # The first optimizer step imports torch._dynamo (torch 2.x, torch/optim/optimizer.py), which takes over a
    # second: better once before forking than in every worker.
    "torch": ("torch", "torch._dynamo", "horovod.torch"),
}
_COMMANDS = {"torch": "pip install torch==2.13.0"}


def import_framework(framework: str) -> None:
    """Import a framework and Horovod's binding for it, where that is installed (one worker does without).

    Raises:
        EnvironmentNotReady: the framework is not installed, or this version has no adapter for it.
    """
    if framework not in _MODULES:
        raise EnvironmentNotReady(f"this version of hvtrain trains framework: torch; {framework} is to come.")
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
    raise EnvironmentNotReady(f"this version of hvtrain has no adapter for {framework}.")
