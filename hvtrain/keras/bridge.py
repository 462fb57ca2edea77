"""Keras's callbacks in hvtrain's loop, on all workers, such that a lost worker's replacement goes on with them.

::

    hvtrain             Keras
    on_start            on_train_begin, then what a checkpoint or another worker knows of them
    on_step_begin       on_epoch_begin (an epoch's first), on_train_batch_begin
    on_step_end         on_train_batch_end
    on_evaluation_end   on_epoch_end                        after every epoch; model.stop_training ends it for all
    on_end              on_train_end

What of a callback's attributes can be written as JSON is its state: in checkpoints, and for replacements. An epoch's
end that a lost worker broke off is gone through again, from the state before it. Callbacks that write files do so on
rank 0.
"""

from __future__ import annotations

import logging
import math
from typing import Any, Mapping, Sequence

import keras
from keras import callbacks as known

from hvtrain.callbacks import Callback, Moment
from hvtrain.config import Job
from hvtrain.errors import UsageError
from hvtrain.keras import attributes

log = logging.getLogger(__name__)

ON_FIRST_RANK = (known.CSVLogger, known.TensorBoard, known.RemoteMonitor, known.ProgbarLogger)
"""Callbacks that only rank 0 has: they show or write things, and decide nothing."""

SETS_RATE = (known.LearningRateScheduler, known.ReduceLROnPlateau)


class Bridge(Callback):
    """Drives ``callbacks`` for ``model``; ``history`` is what ``fit`` returns.

    Args:
        samples: how many the training data have.

    Raises:
        UsageError: a callback cannot do here what it does in model.fit.
    """

    name = "keras"

    def __init__(self, callbacks: Sequence[Any], model: keras.Model, job: Job, *, samples: int):
        self._callbacks = keras.tree.flatten(list(callbacks))
        for callback in self._callbacks:
            _check(callback, job)
        found = [callback for callback in self._callbacks if isinstance(callback, known.History)]
        self.history = found[0] if found else known.History()
        self._callbacks += [] if found else [self.history]
        self._model, self._job, self._samples = model, job, samples
        self._batch_size = job.data.global_batch
        self._started: set[int] = set()
        self._saved: list[dict[str, Any]] = []  # states of callbacks that have not begun here
        self._epoch = self._batch = self._seen = 0
        self._loss = 0.0  # summed over the samples that the epoch has seen
        self._open = False  # whether the epoch has begun
        self._begun = self._closed = self._told = -1  # steps: last begun; last epoch's end; last one written
        self._before: dict[str, Any] | None = None  # the state before the last epoch's end

    # hvtrain's hooks -----------------------------------------------------------------------------------------
    def on_start(self, moment: Moment) -> None:
        self._model.stop_training = False
        self._resize(moment.size)
        for callback in self._here(moment):
            self._begin(callback, moment)
        self._tell(moment)

    def on_resize(self, moment: Moment, old_size: int) -> None:
        self._resize(moment.size)

    def on_step_begin(self, moment: Moment) -> None:
        if self._begun == moment.step:  # a lost worker has broken the step off
            return
        self._begun = moment.step
        if not self._open:
            self._epoch, self._open = moment.epoch, True
            self._call("on_epoch_begin", moment, self._epoch, {})
        self._call("on_train_batch_begin", moment, self._batch, {})

    def on_step_end(self, moment: Moment) -> None:
        count = max(1, min(self._batch_size, self._samples - self._seen))
        self._loss += float(moment.metrics["loss"]) * count
        self._seen += count
        self._call("on_train_batch_end", moment, self._batch, {"loss": self._loss / self._seen})
        self._batch += 1

    def on_evaluation_end(self, moment: Moment) -> None:
        if self._closed == moment.step and self._before is not None:
            self._put(self._before)
        if not self._seen:
            return
        self._before, self._closed = self._now(), moment.step
        logs = {"loss": self._loss / self._seen, **{f"val_{name}": value for name, value in moment.metrics.items()}}
        self._call("on_epoch_end", moment, self._epoch, logs)
        self._told = moment.step
        self._batch = self._seen = 0
        self._loss, self._open = 0.0, False

    def on_end(self, moment: Moment) -> None:
        self._call("on_train_end", moment, {})

    # Their state ---------------------------------------------------------------------------------------------
    def state(self) -> dict[str, Any]:
        return {"now": self._now(), "closed": self._closed, "before": self._before}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._closed, self._before = state["closed"], state["before"]
        self._put(state["now"], rate=False)  # the learning rate is the optimizer's state, and comes with it

    def _now(self) -> dict[str, Any]:
        saved = [self._saved[number] if number < len(self._saved) and id(callback) not in self._started
                 else attributes.read(callback) for number, callback in enumerate(self._callbacks)]
        return {"epoch": self._epoch, "batch": self._batch, "seen": self._seen, "loss": self._loss, "open": self._open,
                "begun": self._begun, "rate": self._rate(), "callbacks": saved,
                "stop": bool(getattr(self._model, "stop_training", False))}

    def _put(self, state: Mapping[str, Any], rate: bool = True) -> None:
        self._epoch, self._batch, self._seen = state["epoch"], state["batch"], state["seen"]
        self._loss, self._open, self._begun = state["loss"], state["open"], state["begun"]
        self._saved = list(state["callbacks"])
        self._model.stop_training = state["stop"]
        for callback in self._callbacks:
            if id(callback) in self._started:
                self._restore(callback)
        if rate and state["rate"] is not None and state["rate"] != self._rate():
            self._model.optimizer.learning_rate = state["rate"]

    def _rate(self) -> float | None:
        optimizer = self._model.optimizer
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        if not isinstance(inner._learning_rate, keras.Variable):  # a schedule of the optimizer's own
            return None
        return float(inner.learning_rate.numpy())

    def _restore(self, callback: Any) -> None:
        number = next(n for n, known_one in enumerate(self._callbacks) if known_one is callback)
        if number < len(self._saved) and not attributes.write(callback, self._saved[number]):
            log.warning("callback %d is a %s now, and begins anew: what was saved is of another", number,
                        type(callback).__name__)

    # Calling them --------------------------------------------------------------------------------------------
    def _here(self, moment: Moment) -> list[Any]:
        return [callback for callback in self._callbacks if moment.rank == 0 or not isinstance(callback, ON_FIRST_RANK)]

    def _call(self, hook: str, moment: Moment, *arguments: Any) -> None:
        again = hook == "on_epoch_end" and self._told == moment.step
        for callback in self._here(moment):
            if again and isinstance(callback, ON_FIRST_RANK):
                continue  # it is written down
            self._begin(callback, moment)
            if isinstance(callback, known.ModelCheckpoint):  # it remembers the best on every rank, and saves on one
                callback.set_model(self._model if moment.rank == 0 else attributes.Unsaved(self._model))
            getattr(callback, hook)(*arguments)
        self._tell(moment)

    def _begin(self, callback: Any, moment: Moment) -> None:
        """Have a callback begin: at the start, or when this worker becomes rank 0."""
        if id(callback) in self._started:
            return
        self._started.add(id(callback))
        batches = self._samples / self._job.data.global_batch
        steps = math.floor(batches) if self._job.data.drop_last else math.ceil(batches)
        callback.set_params({"verbose": 0, "epochs": self._epochs(steps), "steps": steps})
        callback.set_model(self._model)
        if isinstance(callback, known.CSVLogger):
            callback.append = callback.append or moment.step > 0
        callback.on_train_begin({})
        self._restore(callback)

    def _epochs(self, steps: int) -> int:
        train = self._job.train
        return train.epochs or max(1, -(-(train.steps or 1) // max(1, steps)))

    def _tell(self, moment: Moment) -> None:
        moment.stop = moment.stop or bool(getattr(self._model, "stop_training", False))

    def _resize(self, size: int) -> None:
        if self._job.elastic.on_resize == "keep_local_batch":
            batch = self._job.data.global_batch * size // (self._job.launch.workers or 1)
            self._batch_size = max(1, min(batch, self._samples))


def _check(callback: Any, job: Job) -> None:
    name = type(callback).__name__
    if not isinstance(callback, known.Callback):
        hint = "; give callbacks of hvtrain to hvtrain.Trainer" if isinstance(callback, Callback) else ""
        raise UsageError(f"callbacks has a {name}; each must be a keras.callbacks.Callback{hint}")
    if isinstance(callback, (known.BackupAndRestore, known.OrbaxCheckpoint)):
        raise UsageError(f"{name} is not needed: hvtrain saves checkpoints by itself and goes on from them; leave it "
                         'out. How often: config={"checkpoint": {"every": "200 steps"}}')
    if isinstance(callback, known.SwapEMAWeights):
        raise UsageError(f'{name} would change the weights behind hvtrain. Use config={{"train": {{"ema": 0.999}}}}; '
                         "what is evaluated are the averages then")
    if isinstance(callback, known.EarlyStopping) and callback.restore_best_weights:
        raise UsageError("EarlyStopping(restore_best_weights=True) keeps weights within one process, and a replacement "
                         "of a lost worker would not have them. Leave it out, and have the best checkpoint kept: "
                         'config={"checkpoint": {"best": "loss"}}; afterwards hvtrain ckpt export RUN --step best')
    if isinstance(callback, SETS_RATE) and job.optim.schedule.name != "constant":
        raise UsageError(f"{name} and optim.schedule: {job.optim.schedule.name} would both set the learning rate; "
                         "leave one out")
