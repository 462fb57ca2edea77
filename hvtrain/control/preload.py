"""Importing what every worker needs, once, and judging whether the process may still be forked."""

from __future__ import annotations

import importlib
import sys

from hvtrain.control import process
from hvtrain.control.boot import Boot


def load(boot: Boot) -> str:
    """Import the framework, Horovod and the user's module.

    Returns:
        Why this process must not be forked any more, or "" if it may.

    Raises:
        whatever the user's module raises; EnvironmentNotReady if the framework is missing.
    """
    from hvtrain import target
    from hvtrain.adapters import import_framework

    import_framework(boot.job.framework)
    # What every worker imports in its first second anyway; here it costs once.
    for name in ("hvtrain.control.worker", "hvtrain.loop", "hvtrain.data",
                 "hvtrain.engine.rounds"):
        importlib.import_module(name)
    threads = process.thread_count()
    target.resolve(boot.job.task.target, boot.module_dir)
    started = process.thread_count() - threads
    if started > 0:
        return f"importing {boot.job.task.target!r} started {started} thread{'s' if started > 1 else ''}"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return f"importing {boot.job.task.target!r} initialised CUDA"
    return ""
