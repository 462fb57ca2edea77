"""The parts of hvtrain.keras.fit: what it takes as data, what it refuses, metrics over ranks, and Keras's callbacks."""

from __future__ import annotations

import csv
import json
from collections import deque

import numpy as np
import pytest

keras = pytest.importorskip("keras")
if keras.backend.backend() != "tensorflow":
    pytest.skip("Keras without TensorFlow", allow_module_level=True)

from hvtrain import Job  # noqa: E402
from hvtrain.callbacks import Moment  # noqa: E402
from hvtrain.errors import UsageError, UserCodeError  # noqa: E402
from hvtrain.keras import data, fit  # noqa: E402
from hvtrain.keras.bridge import Bridge  # noqa: E402
from hvtrain.keras.compiled import check_model  # noqa: E402
from hvtrain.keras.metrics import Additive  # noqa: E402

X, Y = np.arange(24.0).reshape(8, 3), np.arange(8) % 2
JOB = Job.model_validate({"task": {"script": "t.py"}, "data": {"global_batch": 4}, "train": {"epochs": 3}})


def compiled(**settings):
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(1, activation="sigmoid")])
    model.compile(**{"optimizer": keras.optimizers.SGD(0.1), "loss": "binary_crossentropy", **settings})
    return model


def fetched(source, *indices):
    return source.fetch(np.array(indices), seed=0, epoch=0)


# Data --------------------------------------------------------------------------------------------------------
def test_arrays_keep_their_structure_and_get_kerass_types():
    x, y, weights = fetched(data.samples({"a": X, "b": [X, X]}, Y, np.ones(8)), 5, 1)
    assert x["a"].dtype == weights.dtype == np.float32 and x["a"].tolist() == X[[5, 1]].tolist()
    assert x["b"][1].shape == (2, 3) and y.tolist() == [1, 1] and y.dtype == Y.dtype


def test_class_weights_are_weights_of_samples():
    assert data.class_weights(Y, {1: 3.0}).tolist() == [1, 3] * 4
    assert data.class_weights(np.eye(2)[Y], {0: 0.5}).tolist() == [0.5, 1] * 4


def test_indexed_data_bring_their_own_targets():
    source = data.samples([(row, label) for row, label in zip(X, Y)])
    assert len(source) == 8 and len(fetched(source, 3)) == 1


@pytest.mark.parametrize(("given", "words"), [
    (lambda: {"x": None}, "x is missing"), (lambda: {"x": X}, "the targets are needed"),
    (lambda: {"x": X, "y": Y[:-1]}, "equally many samples"),
    (lambda: {"x": X, "y": Y, "sample_weight": np.ones(8), "class_weight": {0: 1.0}}, "exclude each other"),
    (lambda: {"x": __import__("tensorflow").data.Dataset.range(3)}, "tf.data.Dataset"),
])
def test_data_that_cannot_be_used(given, words):
    with pytest.raises(UsageError, match=words):
        data.samples(**given())


# What is refused ---------------------------------------------------------------------------------------------
class OwnStep(keras.Sequential):
    def train_step(self, batch):
        return {}


def own_step():
    model = OwnStep([keras.layers.Dense(1)])
    model.compile(loss="mse")
    return model


@pytest.mark.parametrize(("model", "words"), [
    (lambda: "model", "must be a keras.Model"), (lambda: keras.Sequential([keras.layers.Dense(1)]), "not compiled"),
    (own_step, "train_step of its own"), (lambda: compiled(run_eagerly=True), "run_eagerly"),
    (lambda: compiled(loss=keras.losses.MeanSquaredError(reduction="sum")), "reduction='sum'"),
])
def test_models_that_would_not_train_as_by_model_fit(model, words):
    with pytest.raises(UsageError, match=words):
        check_model(model())


@pytest.mark.parametrize(("more", "words"), [
    ({"initial_epoch": 3}, "no place here"), ({"validation_split": 0.2}, "split the arrays before"),
    ({"nonsense": 1}, "does not take nonsense"), ({"config": X}, "config is a ndarray"),
])
def test_arguments_that_would_be_wrong(more, words):
    with pytest.raises(UsageError, match=words):
        fit(compiled(), **{"x": X, "y": Y, **more})


@pytest.mark.parametrize(("callback", "words"), [
    (lambda: keras.callbacks.EarlyStopping(restore_best_weights=True), "checkpoint.*best"),
    (lambda: keras.callbacks.BackupAndRestore("backup"), "not needed"), (lambda: print, "must be a keras"),
])
def test_callbacks_that_would_be_wrong(callback, words):
    with pytest.raises(UsageError, match=words):
        Bridge([callback()], compiled(), JOB, samples=8)


# Metrics -----------------------------------------------------------------------------------------------------
def test_states_of_metrics_add_up_to_those_of_all_samples():
    """The area under a curve of two halves is not the mean of their areas, so only the sum of the states is exact."""
    rng = np.random.default_rng(1)
    targets, outputs = rng.integers(0, 2, (30, 1)), rng.random((30, 1)).astype(np.float32)
    names = ["accuracy", "auc", "precision", "recall", keras.metrics.BinaryIoU(name="iou")]

    def make():
        return Additive(compiled(metrics=names)._compile_metrics)

    whole, parts = make(), [make() for _ in range(3)]
    for metrics, rows in zip([whole, *parts], (slice(0, 30), slice(0, 5), slice(5, 30), slice(0, 0))):
        batch = (None, targets[rows], None)
        metrics.build(outputs[:1], (None, targets[:1], None))
        if rows.stop > rows.start:
            metrics.update(outputs[rows], batch[:2])
    expected = whole.result(whole.state())
    found = parts[0].result([sum(numbers) for numbers in zip(*(part.state() for part in parts))])
    assert set(expected) == {"accuracy", "auc", "precision", "recall", "iou"}
    assert found == pytest.approx(expected, abs=1e-6)


def test_a_metric_of_several_numbers_is_refused():
    metrics = Additive(compiled(metrics=[keras.metrics.F1Score()])._compile_metrics)
    outputs = np.ones((4, 3), np.float32)
    metrics.build(outputs, (None, outputs))
    metrics.update(outputs, (None, outputs))
    with pytest.raises(UserCodeError, match="gives 3 values"):
        metrics.result(metrics.state())


# Callbacks ---------------------------------------------------------------------------------------------------
class Witness(keras.callbacks.Callback):
    """Writes down what is called; ``count`` is its state."""

    def __init__(self):
        super().__init__()
        self.calls, self.count = deque(), 0  # JSON has no deque, so this one is no state

    def on_train_begin(self, logs=None):
        self.calls.append("begin")

    def on_epoch_begin(self, epoch, logs=None):
        self.calls.append(f"epoch {epoch}")

    def on_train_batch_end(self, batch, logs=None):
        self.calls.append(f"batch {batch} {logs['loss']:g}")

    def on_epoch_end(self, epoch, logs=None):
        self.count += 1
        self.calls.append(f"end {epoch} {logs}")


class Life:
    """A bridge and the loop's part: two steps of four samples are an epoch."""

    def __init__(self, *callbacks, rank=0, step=0, state=None, model=None):
        self.model, self.rank, self.step, self.stopped = model or compiled(), rank, step, False
        self.bridge = Bridge(callbacks, self.model, JOB, samples=8)
        if state is not None:
            self.bridge.load_state(json.loads(json.dumps(state)))
        self.say("on_start")

    def say(self, hook, **metrics):
        moment = Moment(self.step, self.step // 2, self.rank, 2, self.model, None, metrics)
        getattr(self.bridge, hook)(moment)
        self.stopped = self.stopped or moment.stop

    def take(self, *losses):
        for loss in losses:
            self.say("on_step_begin")
            self.step += 1
            self.say("on_step_end", loss=loss)
        return self

    def end(self, loss):
        self.say("on_evaluation_end", loss=loss)
        return self


def test_callbacks_hear_what_they_would_in_model_fit():
    witness = Witness()
    life = Life(witness).take(4.0, 2.0).end(5.0).take(1.0)
    assert list(witness.calls) == ["begin", "epoch 0", "batch 0 4", "batch 1 3", "end 0 {'loss': 3.0, 'val_loss': 5.0}",
                             "epoch 1", "batch 0 1"]
    assert life.bridge.history.history == {"loss": [3.0], "val_loss": [5.0]} and life.bridge.history.epoch == [0]


def test_a_step_that_was_broken_off_begins_once():
    witness = Witness()
    life = Life(witness)
    life.say("on_step_begin")
    life.say("on_step_begin")
    assert list(witness.calls) == ["begin", "epoch 0"]


def test_an_epochs_end_that_was_broken_off_counts_once():
    """A worker died while the others told each other how to go on: they evaluate again, and wait no longer for it."""
    stopping = keras.callbacks.EarlyStopping(patience=2, min_delta=0.1)
    reducing = keras.callbacks.ReduceLROnPlateau(patience=1, factor=0.5)
    life = Life(stopping, reducing).take(1.0, 1.0).end(5.0).end(5.0).take(1.0, 1.0).end(5.0).end(5.0)
    assert stopping.wait == 1 and stopping.min_delta == -0.1 and not life.stopped
    assert float(life.model.optimizer.learning_rate) == pytest.approx(0.05)
    assert life.bridge.history.epoch == [0, 1]


def test_a_replacement_goes_on_where_the_others_are():
    def callbacks():
        return (keras.callbacks.EarlyStopping(patience=2, min_delta=0.1), keras.callbacks.ReduceLROnPlateau(patience=9),
                Witness())

    first = Life(*callbacks()).take(1.0, 1.0).end(5.0).take(1.0, 1.0).end(4.95).take(1.0)
    second = Life(*(own := callbacks()), state=first.bridge.state(), step=5)
    assert own[0].wait == 1 and own[0].best == 5.0 and own[2].count == 2 and own[2].calls[-1] == "begin"
    for life in (first, second):
        life.take(3.0).end(4.92)
        assert life.stopped and life.bridge.history.history["loss"] == [1.0, 1.0, 2.0]
    assert json.dumps(first.bridge.state()) == json.dumps(second.bridge.state())
    assert own[0].min_delta == -0.1, "for smaller is better; restoring must not turn it round"


def test_files_are_written_by_the_first_rank_and_go_on_under_another(tmp_path):
    """Rank 0 dies after two epochs; the worker that takes its place appends to the file and knows the best."""
    log, best = tmp_path / "log.csv", tmp_path / "best.keras"

    def callbacks():
        return (keras.callbacks.CSVLogger(log),
                keras.callbacks.ModelCheckpoint(best, save_best_only=True, monitor="val_loss", mode="min"))

    first, other = (Life(*callbacks(), rank=rank) for rank in (0, 1))
    for life in (first, other):
        life.take(1.0, 1.0).end(5.0).take(1.0, 1.0).end(6.0)
    written = best.stat().st_mtime_ns
    third = Life(*(own := callbacks()), rank=0, step=4, state=other.bridge.state())
    third.take(1.0, 1.0).end(5.5)
    assert own[1].best == 5.0 and best.stat().st_mtime_ns == written
    with open(log) as file:
        rows = list(csv.DictReader(file))
    assert [(row["epoch"], row["val_loss"]) for row in rows] == [("0", "5.0"), ("1", "6.0"), ("2", "5.5")]


def test_a_rate_that_a_callback_schedules_is_set_before_the_step():
    life = Life(keras.callbacks.LearningRateScheduler(lambda epoch: 0.5 / (epoch + 1)))
    life.say("on_step_begin")
    assert float(life.model.optimizer.learning_rate) == 0.5
    life.take(1.0, 1.0).end(1.0)
    life.say("on_step_begin")
    assert float(life.model.optimizer.learning_rate) == 0.25
    assert life.bridge.history.history["learning_rate"] == [0.5]
