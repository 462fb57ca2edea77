"""``hvtrain.torch.fit``: what the loop over a DataLoader does in an ordinary PyTorch script, as an hvtrain job."""

from __future__ import annotations

from typing import Any, Callable, Mapping, Sequence

import torch

from hvtrain import fitting
from hvtrain.callbacks import Callback
from hvtrain.config import Job
from hvtrain.data import as_source
from hvtrain.errors import UsageError, UserCodeError
from hvtrain.loop import Outcome
from hvtrain.task import Task

Loss = Callable[[Any, Any], torch.Tensor]


def fit(model: torch.nn.Module, config: fitting.Config = None, dataset: Any = None, *, loss: Loss,
        optimizer: torch.optim.Optimizer | None = None, epochs: int | None = None, batch_size: int | None = None,
        validation: Any = None, metrics: Mapping[str, Loss] | None = None,
        callbacks: Sequence[Callback] = ()) -> Outcome:
    """Train a model: as a worker of ``hvtrain run script.py``, else alone or as one rank of horovodrun.

    Args:
        config: further settings: the path of a job file, a mapping such as ``{"train": {"grad_clip": 1.0}}``, a Job.
        dataset: a torch Dataset with a length, or whatever :mod:`hvtrain.data` takes; not a DataLoader. A sample is
            ``(inputs, ..., targets)``: the last part are the targets, the model is called with the others.
        loss: ``loss(outputs, targets)``: the mean over the batch, a scalar, or one loss per sample, shape ``(B,)``.
        optimizer: over the model's parameters. None: what ``optim`` of the config describes.
        epochs: None: the config's, or else 1.
        batch_size: samples per step over all workers together, whatever their number. None: the config's, or else 64.
        validation: data as ``dataset``, evaluated after every epoch.
        metrics: by name ``metric(outputs, targets)``: one value per sample, or the mean over the batch; of
        ``validation``.
        callbacks: of hvtrain.

    Returns:
        Where the training ended; ``summary["metrics"]`` are those of the last evaluation. The model has the final weights
        on every rank, in training mode: call ``model.eval()`` before you use it.

    Raises:
        UsageError: something was given that would not do what it does in a loop of one's own.
        SystemExit: stopped by a signal, after a checkpoint.
    """
    if not isinstance(model, torch.nn.Module):
        raise UsageError(f"the model is a {type(model).__name__}; it must be a torch.nn.Module")
    if dataset is None:
        raise UsageError("dataset is missing: hvtrain.torch.fit(model, dataset=..., loss=..., ...)")
    _check_loss(loss)
    _check_optimizer(optimizer, model)
    as_source(dataset)  # what is wrong with it is said here, before anything begins

    def make(job: Job) -> FitTask:
        return FitTask(model, job, dataset, validation, loss, optimizer, metrics or {})

    return fitting.train(make, "torch", config, defaults={"train": {"epochs": 1}}, callbacks=callbacks, arguments={
        **fitting.section("data", global_batch=batch_size), **fitting.section("train", epochs=epochs)})


class FitTask(Task):
    """A model, a loss and an optimizer that are there already. Batches are ``(inputs, ..., targets)``."""

    def __init__(self, model: torch.nn.Module, job: Job, train: Any, validation: Any, loss: Loss,
                 optimizer: torch.optim.Optimizer | None, metrics: Mapping[str, Loss]):
        self._model, self._job, self._train, self._validation = model, job, train, validation
        self._loss, self._optimizer, self._metrics = loss, optimizer, metrics

    def model(self) -> torch.nn.Module:
        return self._model

    def data(self, split: str) -> Any:
        return self._train if split == "train" else self._validation

    def inputs(self, batch: Any) -> Any:
        parts = _parts(batch)
        return parts[0] if len(parts) == 2 else tuple(parts[:-1])

    def loss(self, outputs: Any, batch: Any) -> torch.Tensor:
        return self._loss(outputs, _parts(batch)[-1])

    def metrics(self, outputs: Any, batch: Any) -> Mapping[str, Any]:
        return {name: metric(outputs, _parts(batch)[-1]) for name, metric in self._metrics.items()}

    def optimizer(self, groups: Sequence[Mapping[str, Any]]) -> torch.optim.Optimizer | None:
        if self._optimizer is not None and "lr" in self._job.optim.model_fields_set:
            for group in self._optimizer.param_groups:
                group["lr"] = self._job.optim.lr
        return self._optimizer


def _parts(batch: Any) -> Sequence[Any]:
    if not isinstance(batch, (tuple, list)) or len(batch) < 2:
        raise UserCodeError(f"a batch is a {type(batch).__name__}; each sample must be a tuple (inputs, ..., targets). "
                            "For other samples write an hvtrain.Task and train it by hvtrain.Trainer")
    return batch


def _check_loss(loss: Any) -> None:
    if not callable(loss):
        raise UsageError(f"loss is a {type(loss).__name__}; it must be a function loss(outputs, targets)")
    reduction = getattr(loss, "reduction", "mean")
    if reduction == "sum":
        raise UsageError("the loss has reduction='sum', so its gradient grows with the batch; give reduction='mean' or "
                         "'none', and multiply the learning rate by the batch size if you want the same steps")
    if reduction == "mean" and getattr(loss, "weight", None) is not None:
        raise UsageError(f"{type(loss).__name__} with weights and reduction='mean' divides by the weights of its "
                         "batch, which is another number on every worker; give reduction='none'")


def _check_optimizer(optimizer: Any, model: torch.nn.Module) -> None:
    if optimizer is None:
        return
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UsageError(f"optimizer is a {type(optimizer).__name__}; it must be a torch.optim.Optimizer")
    if any("initial_lr" in group for group in optimizer.param_groups):
        raise UsageError("a learning-rate scheduler is attached to the optimizer, but nobody would call its step(). Leave it "
                         'out and use config={"optim": {"schedule": {"name": "cosine", "warmup": "5%"}}}')
    own = {id(parameter) for parameter in model.parameters()}
    if any(id(parameter) not in own for group in optimizer.param_groups for parameter in group["params"]):
        raise UsageError("the optimizer has parameters that are not the model's; make it of model.parameters()")
