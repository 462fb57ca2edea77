"""A compiled Keras model as a task: its own loss, metrics and optimizer."""

from __future__ import annotations

from itertools import repeat
from typing import Any, Iterator, Mapping, Sequence

import keras
import tensorflow as tf

from hvtrain.callbacks import Callback
from hvtrain.config import Job
from hvtrain.data.sources import Source
from hvtrain.errors import UsageError, UserCodeError
from hvtrain.keras.data import Nothing, unpacked
from hvtrain.keras.metrics import Additive
from hvtrain.task import Task

_MEANS = ("sum_over_batch_size", "mean")
_OVERRIDES = ("train_step", "test_step", "compute_loss", "compute_metrics")


class CompiledTask(Task):
    """What ``model.compile`` said, of samples ``(x, y)`` or ``(x, y, weight)``.

    ``stateful_metrics`` are the compiled ones: the adapter has them updated in an evaluation, and adds up their states
    over the ranks. ``whole_inputs``: x goes into the model as it is, a dictionary too.
    """

    whole_inputs = True

    def __init__(self, model: keras.Model, job: Job, train: Source, evaluation: Source | None, bridge: Callback):
        self._model, self._job, self._train, self._evaluation, self._bridge = model, job, train, evaluation, bridge
        compiled = model._compile_metrics if evaluation is not None else None
        self.stateful_metrics = Additive(compiled) if compiled is not None else None

    def model(self) -> keras.Model:
        return self._model

    def data(self, split: str) -> Any:
        if split == "train":
            return self._train
        return self._evaluation if self._evaluation is not None else Nothing()

    def loss(self, outputs: Any, batch: Any) -> tf.Tensor:
        """The compiled loss, a mean over the batch; the adapter adds the regularisation itself."""
        _, targets, weights = unpacked(batch)
        if any(getattr(output, "_keras_mask", None) is not None for output in tf.nest.flatten(outputs)):
            raise UserCodeError("the model's output has a mask, and then Keras's losses are a mean over what is not "
                                "masked in one batch: no sum over batches, so no training on several workers. Take the "
                                "mask off (mask_zero=False), and give sample_weight of the targets' shape instead")
        compiled = self._model._compile_loss
        kept, compiled._metrics = compiled._metrics, _NoTrackers()
        try:
            return compiled(targets, outputs, weights)
        finally:
            compiled._metrics = kept

    def metrics(self, outputs: Any, batch: Any) -> Mapping[str, Any]:
        """The loss as Keras shows it, regularisation included."""
        values = (self.loss(outputs, batch), *self._model.losses)
        return {"loss": tf.add_n([tf.cast(value, tf.float32) for value in values])}

    def optimizer(self, groups: Sequence[Mapping[str, Any]]) -> keras.optimizers.Optimizer:
        optimizer = self._model.optimizer
        if "lr" in self._job.optim.model_fields_set:
            try:
                optimizer.learning_rate = self._job.optim.lr
            except (TypeError, ValueError) as error:
                raise UsageError(f"optim.lr cannot be set: {error}. Leave it out") from None
        return optimizer

    def callbacks(self) -> Sequence[Callback]:
        return [self._bridge]


class _NoTrackers:
    """Stands for the metrics in which Keras sums up the loss of each of several outputs: no rank shares those."""

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[None]:
        return repeat(None)


def check_model(model: Any) -> None:
    """Raise UsageError for a model that cannot be trained just as ``model.fit`` would."""
    if not isinstance(model, keras.Model):
        raise UsageError(f"the model is a {type(model).__name__}; it must be a keras.Model")
    if not model.compiled or model._compile_loss is None:
        raise UsageError("the model is not compiled with a loss; call model.compile(optimizer=..., loss=...) first")
    for name in _OVERRIDES:
        if getattr(type(model), name) is not getattr(keras.Model, name):
            raise UsageError(f"{type(model).__name__} has a {name} of its own, which hvtrain would not call: its steps "
                             "are split over the workers. Write an hvtrain.Task, and train it by hvtrain.Trainer")
    if model.run_eagerly:
        raise UsageError("the model is compiled with run_eagerly=True, but hvtrain traces its steps; leave that out")
    for loss in keras.tree.flatten(model._compile_loss._user_loss):
        reduction = getattr(loss, "reduction", _MEANS[0])
        if reduction not in _MEANS:
            raise UsageError(f"the loss {loss.name!r} has reduction={reduction!r}, whose value depends on how a batch "
                             f"is split over the workers; compile with reduction={_MEANS[0]!r}, the default")
