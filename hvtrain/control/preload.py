"""Importing what every worker needs, once, and judging whether the process may still be forked."""

from __future__ import annotations

import importlib
import logging
import sys
from pathlib import Path

from hvtrain.control import process, script
from hvtrain.control.boot import Boot
from hvtrain.control.noise import Noise

log = logging.getLogger(__name__)


def load(boot: Boot, noise: Noise) -> str:
    """Import the framework, Horovod and the user's module; ``noise`` takes what the first two write.

    Returns:
        Why this process must not be forked any more, or "" if it may.

    Raises:
        whatever the user's module raises; EnvironmentNotReady if the framework is missing.
    """
    from hvtrain import adapters, target

    with noise.caught():
        adapters.import_framework(boot.job.framework)
    # What every worker imports in its first second anyway; here it costs once.
    for name in ("hvtrain.control.worker", "hvtrain.loop", "hvtrain.data", "hvtrain.engine.rounds"):
        importlib.import_module(name)
    threads = process.thread_count()
    task = boot.job.task
    what = task.script or task.target
    if task.script is not None:
        _import_for_script(Path(boot.module_dir) / Path(task.script).name)
    else:
        target.resolve(task.target, boot.module_dir)
    started = process.thread_count() - threads
    if started > 0:
        hint = ", because TensorFlow computes something there, such as a variable or a constant; let Task.model do that" \
            if _tensorflow_is_at_work() else ""
        return f"importing {what!r} started {started} thread{'s' if started > 1 else ''}{hint}"
    if boot.job.framework == "keras" and threads > 1:  # it starts none (2.21 for CPUs); should another version do so ...
        return f"importing TensorFlow started {threads - 1} thread{'s' if threads > 2 else ''}"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return f"importing {what!r} initialised CUDA"
    return ""


def _import_for_script(path: Path) -> None:
    """Import what a script imports from elsewhere; its own modules are left to it, they may do anything."""
    for name in script.imported(path):
        if script.installed(name, path.parent):
            try:
                importlib.import_module(name)
            except Exception:  # noqa: BLE001 - the script may not get there, or expect it; else it fails by itself
                log.debug("%s could not be imported beforehand", name, exc_info=True)


def _tensorflow_is_at_work() -> bool:
    context = sys.modules.get("tensorflow.python.eager.context")  # TensorFlow 2.16 to 2.21; without it a hint is not given
    return getattr(getattr(context, "_context", None), "_initialized", False) is True
