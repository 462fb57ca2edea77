"""What ``hvtrain.keras.fit`` and ``hvtrain.torch.fit`` share: which job it is, and who trains it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

from hvtrain import hosting
from hvtrain.callbacks import Callback
from hvtrain.config import Job, layers
from hvtrain.config.loading import read_environment, read_settings
from hvtrain.errors import ExitCode, UsageError
from hvtrain.task import Task
from hvtrain.trainer import Trainer

Config = Any
"""None, the path of a job file, a mapping of settings, or a Job."""

_used: set[str] = set()


def train(make: Callable[[Job], Task], framework: str, config: Config, *, arguments: Mapping[str, Any],
          defaults: Mapping[str, Any], callbacks: Sequence[Callback] = ()) -> Any:
    """Train as the worker that hosts this script, or else alone, or as one rank of horovodrun; returns an Outcome.

    ``arguments`` are settings that go before those of ``config``; those of ``defaults`` come after them.

    Raises:
        ConfigError: the settings are wrong.
        UsageError: it is the second training of a job.
        SystemExit: the training was stopped by a signal, after a checkpoint.
        and whatever the training raises.
    """
    given = layers.merged(settings(config), arguments)
    host = hosting.current()
    if host is not None:
        return host.train(make, framework, given=given, defaults=defaults, callbacks=callbacks)
    script = _script()
    own = {"run": {"dir": f"runs/{Path(script).stem}"}}
    fixed = {"framework": framework, "task": {"script": script}}
    job = layers.settle([own, defaults, given, read_environment()], fixed, "the settings of fit()")
    directory = os.path.abspath(job.run.dir)
    if directory in _used:
        raise UsageError(f"fit() was called a second time for the run directory {job.run.dir}, where the first training is "
                         'kept. Give each its own: config={"run": {"dir": PATH}}')
    _used.add(directory)
    outcome = Trainer(job, make(job), callbacks).fit()
    if outcome.stopped:
        print(f"hvtrain: stopped after a checkpoint in {job.run.dir}; the same command goes on from there", file=sys.stderr)
        raise SystemExit(int(ExitCode.TERMINATED))
    return outcome


def settings(config: Config) -> dict[str, Any]:
    """What ``config`` says explicitly."""
    if config is None:
        return {}
    if isinstance(config, Job):
        found = layers.explicit(config)
    elif isinstance(config, Mapping):
        found = dict(config)
    elif isinstance(config, (str, os.PathLike)):
        found = read_settings(config)
    else:
        raise UsageError(f"config is a {type(config).__name__}; it must be None, the path of a job file, a dictionary such as "
                         '{"train": {"epochs": 5}}, or an hvtrain.Job')
    # The task is what fit() was given.
    return {key: value for key, value in found.items() if key not in ("task", "framework", "version")}


def section(name: str, **values: Any) -> dict[str, Any]:
    """``{name: values}`` without those that are None; empty if all are."""
    kept = {key: value for key, value in values.items() if value is not None}
    return {name: kept} if kept else {}


def _script() -> str:
    """The script that this process runs; a stand-in where there is none, as in a notebook."""
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    return os.path.relpath(file) if file and file.endswith(".py") else "interactive.py"
