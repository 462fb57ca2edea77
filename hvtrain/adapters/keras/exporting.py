"""The model of a run with the weights of a checkpoint, as a file or a directory that Keras and TensorFlow load."""

from __future__ import annotations

import os
import secrets
import shutil
import traceback
from pathlib import Path
from typing import Mapping

import keras
import tensorflow as tf

from hvtrain import target
from hvtrain.adapters.keras import pipeline, variables as kinds
from hvtrain.adapters.keras.batches import tensors
from hvtrain.adapters.keras.calling import forward
from hvtrain.adapters.keras.precision import Precision
from hvtrain.checkpoint.blob import Blob
from hvtrain.config import Job
from hvtrain.data import Loader, as_source
from hvtrain.errors import EnvironmentNotReady, UsageError, UserCodeError
from hvtrain.task import Task

FILE = ".keras"
MARK = "saved_model.pb"
"""What makes a directory a SavedModel."""


def export_model(job: Job, module_dir: str, weights: Mapping[str, Blob], output: Path) -> None:
    """Write the model of ``job`` with ``weights`` to ``output``: a .keras file, or the directory of a SavedModel.

    What is there already is replaced once the new one is complete. ``module_dir`` is where ``task.target`` is found.

    Raises:
        UsageError: ``output`` is a directory of something else, or there is no such task.
        UserCodeError: Keras cannot save this model.
        CheckpointDamaged: the weights do not fit it.
        EnvironmentNotReady: it cannot be written.
    """
    if output.suffix != FILE and output.exists() and not (output / MARK).is_file():
        raise UsageError(f"{output} exists and is no SavedModel (it has no {MARK}). Choose another directory")
    assert job.task.target is not None
    model = build(job, target.build(job.task.target, module_dir, job.task.args))
    kinds.restore(kinds.Variables(model).weights, weights, "model")
    temporary = output.absolute().with_name(f".{secrets.token_hex(4)}-{output.name}")
    try:
        try:
            _write(model, temporary)
            _replace(temporary, output)
        finally:
            _remove(temporary)
    except OSError as error:
        raise EnvironmentNotReady(f"{output} cannot be written: {error.strerror or error}.") from error


def build(job: Job, task: Task) -> keras.Model:
    """The task's model with all its variables, whatever their values; called once on training data if it needs that."""
    with Precision(job.train.precision, job.train.loss_scale).policy():
        model = task.model()
        if not kinds.built(model):
            source = as_source(task.data("train"))
            batch, _ = Loader(source, task.collate).example(min(2, len(source)))
            forward(task, model, pipeline.through(task, tensors(batch), "train", tf.zeros(2, tf.int32)), False)
    return model


def _write(model: keras.Model, path: Path) -> None:
    kind = "a .keras file" if path.suffix == FILE else "a SavedModel"
    try:
        if path.suffix == FILE:
            model.save(path)
        else:
            model.export(path, format="tf_saved_model", verbose=False)
    except OSError:
        raise
    except Exception as error:
        reason = " ".join(str(error).partition("Example:")[0].split())  # what follows is a page of code
        raise UserCodeError(f"Keras cannot save the model as {kind}: {type(error).__name__}: {reason} What "
                            "always works is --to FILE.safetensors", traceback.format_exc()) from error


def _replace(temporary: Path, output: Path) -> None:
    if output.is_dir():
        aside = temporary.with_name(f"{temporary.name}.old")
        os.rename(output, aside)
        os.rename(temporary, output)
        shutil.rmtree(aside)
    else:
        os.replace(temporary, output)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
