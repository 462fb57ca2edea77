"""``hvtrain ckpt export`` of whole models: from a run and one of its checkpoints to what the framework itself loads."""

from __future__ import annotations

import json
import os
from pathlib import Path

from hvtrain.cli.ckpt_target import Target
from hvtrain.errors import CheckpointMissing, UsageError
from hvtrain.report.rundir import RunDirectory

PLAIN = "What needs no code is --to FILE.safetensors"


def export(target: Target, checkpoint: Path, output: Path, weights: str, code: Path | None) -> None:
    """Write ``checkpoint`` of ``target`` as a Keras model to ``output``.

    Args:
        weights: "model" or "ema"; the latter takes what has no average from the model.
        code: where ``task.target`` is found; None for where the run found it.

    Raises:
        UsageError: the run is not Keras's, or its task cannot be found again.
        CheckpointMissing, CheckpointDamaged, and what :func:`hvtrain.adapters.keras.exporting.export_model` raises.
    """
    if target.config is None:
        raise UsageError(f"To build the model again takes the run's config.yaml, which is not beside "
                         f"{checkpoint.parent}. "
                         f"{PLAIN}")
    from hvtrain.config import load

    job = load(target.config, env={})
    if job.framework != "keras":
        raise UsageError(f"{output} would be a Keras model, but the run's framework is {job.framework}. {PLAIN}")
    if job.task.target is None:
        raise UsageError(f"The run's model was made by a script, {job.task.script}, which can save it itself: "
                         f"model.save({output.name!r}) after fit. {PLAIN}")
    groups = ["model", "ema"] if weights == "ema" else ["model"]
    lacking = set(groups) - set(target.store.manifest(checkpoint).groups)
    if lacking:
        raise CheckpointMissing(f"Checkpoint {checkpoint} has no {', '.join(sorted(lacking))} weights.")
    read = target.store.read(checkpoint, groups).groups
    tensors = {name: blob for group in groups for name, blob in read[group].items()}
    directory = str(code) if code is not None else _recorded(target.config.parent)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from hvtrain import adapters

    adapters.import_framework("keras")
    from hvtrain.adapters.keras import exporting

    exporting.export_model(job, directory, tensors, output)


def _recorded(run: Path) -> str:
    path = RunDirectory(run).environment
    try:
        directory = json.loads(path.read_text())["code"]
    except (OSError, ValueError, KeyError, TypeError):
        directory = ""
    if not directory or not Path(directory).is_dir():
        raise UsageError(f"To build the model again takes the task's code, which "
                         + (f"is not in {directory} any more" if directory else f"{path} says nothing about")
                         + f". Say where it is: --code DIRECTORY. {PLAIN}")
    return directory
