"""hvtrain.keras.fit against model.fit: the same weights, losses and metrics, from samples in the same order."""

from __future__ import annotations

import numpy as np
import pytest

keras = pytest.importorskip("keras")
if keras.backend.backend() != "tensorflow":
    pytest.skip("Keras without TensorFlow", allow_module_level=True)

from keras import layers  # noqa: E402

import hvtrain.keras  # noqa: E402

RNG = np.random.default_rng(4)
A, B = RNG.normal(size=(22, 5)), RNG.normal(size=(22, 3)).astype("float32")
LABELS, NUMBERS = (A[:, 0] > 0).astype("int64"), A.sum(1, keepdims=True)
WEIGHTS = RNG.random(22)
SHORT = {"train": {}, "log": {"console": "off"}, "checkpoint": {"every": None}}


def two_inputs():
    """Two inputs in a dictionary, two outputs, a shared layer, regularisation, statistics; metrics of both kinds."""
    a, b = layers.Input((5,), name="a"), layers.Input((3,), name="b")
    uniform = keras.initializers.GlorotUniform
    hidden = layers.Dense(8, activation="relu", kernel_regularizer="l2", kernel_initializer=uniform(1))
    merged = layers.Concatenate()([hidden(a), layers.Dense(4, kernel_initializer=uniform(2))(b)])
    outputs = {"label": layers.Dense(2, activation="softmax", kernel_initializer=uniform(3))(merged),
               "number": layers.Dense(1, kernel_initializer=uniform(4))(merged)}
    model = keras.Model({"a": a, "b": b}, outputs)
    model.compile(optimizer=keras.optimizers.SGD(0.05, momentum=0.9),
                  loss={"label": "sparse_categorical_crossentropy", "number": "mse"},
                  loss_weights={"label": 1.0, "number": 0.3},
                  metrics={"label": ["accuracy"], "number": ["mae", keras.metrics.R2Score()]})
    return model, {"a": A, "b": B}, {"label": LABELS, "number": NUMBERS}, {}


def weighted():
    model = keras.Sequential([layers.Input((5,)), layers.Dense(6, activation="tanh", kernel_initializer="ones"),
                              layers.Dense(1, activation="sigmoid", kernel_initializer="ones")])
    model.compile(optimizer=keras.optimizers.Adam(0.01), loss="binary_crossentropy", metrics=["auc"],
                  weighted_metrics=["accuracy"])
    return model, A, LABELS, {"sample_weight": WEIGHTS}


def by_class():
    model, x, y, _ = weighted()
    return model, x, y, {"class_weight": {0: 2.0, 1: 0.5}}


class NotBuilt(keras.Model):
    """Has no variables before it is called."""

    def __init__(self):
        super().__init__()
        self.first, self.last = layers.Dense(4, kernel_initializer="ones"), layers.Dense(1, kernel_initializer="ones")

    def call(self, inputs):
        return self.last(self.first(inputs[0]) + self.first(inputs[1]))


def subclassed():
    model = NotBuilt()
    model.compile(optimizer="sgd", loss=lambda y, p: keras.ops.mean(keras.ops.abs(y - p), axis=-1))
    return model, (A, A[:, ::-1].copy()), NUMBERS, {}


@pytest.mark.parametrize("make", [two_inputs, weighted, by_class, subclassed])
def test_a_model_is_trained_as_by_model_fit(make, tmp_path):
    theirs, x, y, more = make()
    ours = make()[0]
    validation = (x, y, more["sample_weight"]) if "sample_weight" in more else (x, y)
    settings = {"batch_size": 8, "epochs": 3, "shuffle": False, "validation_data": validation, **more}
    expected = theirs.fit(x, y, verbose=0, **settings).history
    found = hvtrain.keras.fit(ours, {**SHORT, "run": {"dir": str(tmp_path)}}, x, y, **settings).history
    for name, numbers in found.items():
        assert numbers == pytest.approx(expected[name], rel=2e-5, abs=1e-6), name
    assert {name for name in expected if name.startswith("val_") or name == "loss"} - set(found) <= {
        "val_label_loss", "val_number_loss"}  # the parts of a loss
    for mine, other in zip(ours.get_weights(), theirs.get_weights()):
        np.testing.assert_allclose(mine, other, rtol=2e-5, atol=1e-6)


class Batches(keras.utils.PyDataset):
    """Batches of eight."""

    def __len__(self):
        return 3

    def __getitem__(self, number):
        rows = slice(8 * number, 8 * number + 8)
        return A[rows].astype("float32"), LABELS[rows]


def test_a_pydataset_trains_as_its_arrays_do(tmp_path):
    models = [weighted()[0] for _ in range(2)]
    common = {"batch_size": 8, "epochs": 2, "shuffle": False}
    for model, data, place in zip(models, ({"x": A, "y": LABELS}, {"x": Batches()}), ("arrays", "batches")):
        hvtrain.keras.fit(model, {**SHORT, "run": {"dir": str(tmp_path / place)}}, **data, **common)
    for one, other in zip(*(model.get_weights() for model in models)):
        assert np.array_equal(one, other)


def test_the_history_of_a_run_that_is_complete_comes_from_its_checkpoint(tmp_path):
    """Early stopping ends it, also without validation data; started again, there is nothing to do and all is known."""
    found = []
    for number in range(2):
        model, x, y, _ = weighted()
        hvtrain.fitting._used.clear()
        stopping = keras.callbacks.EarlyStopping(monitor="loss", patience=1, min_delta=10.0)
        history = hvtrain.keras.fit(model, {"run": {"dir": str(tmp_path)}, "log": {"console": "off"}}, x, y, epochs=9,
                                    batch_size=8, callbacks=[stopping])
        weights = [array.tolist() for array in model.get_weights()]
        found.append((history.epoch, history.history, stopping.wait, weights))
    assert found[0] == found[1] and found[0][0] == [0, 1]
