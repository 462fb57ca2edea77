"""``hvtrain.keras.fit``: what ``model.fit`` does, as an hvtrain job."""

from __future__ import annotations

from typing import Any, Mapping, Sequence

import keras

from hvtrain import fitting
from hvtrain.config import Job
from hvtrain.errors import UsageError
from hvtrain.keras import data
from hvtrain.keras.bridge import Bridge
from hvtrain.keras.compiled import CompiledTask, check_model

KERAS_BATCH = 32  # of model.fit

_INSTEAD = {  # what model.fit takes besides
    "validation_split": "split the arrays before, and give validation_data=(x, y)",
    "validation_freq": "hvtrain evaluates after every epoch",
    "validation_steps": "all of validation_data is evaluated",
    "validation_batch_size": 'give config={"data": {"eval_batch": N}}',
    "steps_per_epoch": 'an epoch is all of x; give config={"train": {"steps": N}} to train for so many steps in all',
}


def fit(model: keras.Model, config: fitting.Config = None, x: Any = None, y: Any = None, *,
        batch_size: int | None = None, epochs: int | None = None, validation_data: Any = None,
        callbacks: Sequence[Any] | None = None, sample_weight: Any = None,
        class_weight: Mapping[int, float] | None = None, shuffle: bool | None = None, verbose: Any = None,
        initial_epoch: int = 0, **others: Any) -> keras.callbacks.History:
    """Train a compiled model: as a worker of ``hvtrain run script.py``, else alone or as one rank of horovodrun.

    Loss, metrics and optimizer are those of ``model.compile``. Of the training data only ``loss`` is logged (the mean
    over the epoch, regularisation included), the metrics are computed of ``validation_data``, after every epoch,
    exactly over all workers: ``val_loss``, ``val_accuracy`` ... Where a run is resumed, so are the callbacks; see
    :mod:`hvtrain.keras.bridge` for what becomes of them.

    Args:
        config: further settings: the path of a job file, a mapping such as ``{"train": {"grad_clip": 1.0}}``, a Job.
        x: arrays (samples along the first axis; a tuple, list or dict of them for several inputs), a
            ``keras.utils.PyDataset``, or anything with ``__len__`` and ``__getitem__`` whose samples are ``(x, y)`` or
            ``(x, y, weight)``.
        y: targets, if x is arrays.
        batch_size: samples per step over all workers together, whatever their number. None: the config's, or else 32.
        epochs: None: the config's, or else 1.
        validation_data: ``(x, y)``, ``(x, y, sample_weight)``, or a data set as x.
        callbacks: of Keras.
        sample_weight: weight of each sample, shape ``(N,)``.
        class_weight: weight by class, for integer or one-hot targets.
        shuffle: False keeps the order of the samples. None: the config's, or else a new order in each epoch.
        verbose: 0 shows nothing on the console, if it trains alone.

    Returns:
        The History of all epochs, also of those before a resumption.

    Raises:
        UsageError, UserCodeError: something was given that would not do what model.fit does.
        SystemExit: stopped by a signal, after a checkpoint.
    """
    if initial_epoch:
        raise UsageError("initial_epoch has no place here: a run that was interrupted goes on by itself where it was")
    for name in others:
        instead = f": {_INSTEAD[name]}" if name in _INSTEAD else ""
        raise UsageError(f"hvtrain.keras.fit does not take {name}{instead}")
    check_model(model)
    train = data.samples(x, y, sample_weight, class_weight)
    evaluation = data.validation(validation_data)
    scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)  # the mixed_float16 policy brings it
    batch = getattr(getattr(x, "batch_size", None), "__index__", lambda: KERAS_BATCH)()
    bridges: list[Bridge] = []

    def make(job: Job) -> CompiledTask:
        _check_job(job)
        bridges.append(Bridge(callbacks or (), model, job, samples=len(train)))
        return CompiledTask(model, job, train, evaluation, bridges[-1])

    fitting.train(make, "keras", config, defaults={"data": {"global_batch": batch}, "train": {"epochs": 1}}, arguments={
        **fitting.section("data", global_batch=batch_size, shuffle=shuffle),
        **fitting.section("train", epochs=epochs, precision="fp16" if scaled else None),
        **fitting.section("log", console="off" if verbose == 0 else None)})
    return bridges[-1].history


def _check_job(job: Job) -> None:
    every = job.eval.every
    if every is None or every.unit != "epoch" or every.count != 1:
        raise UsageError(f"eval.every is {every}, but fit() evaluates after every epoch, as model.fit does; leave it "
                         "out")
