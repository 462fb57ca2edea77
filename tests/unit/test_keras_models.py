"""Gradients of every kind of Keras model are those of the plain tape over the whole batch, however it is split."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from hvtrain.errors import UserCodeError
from tests.support.keras_small import SAMPLES, Rank, Small, plain, squares
from tests.support.threads import together

RNG = np.random.default_rng(5)
POINTS = RNG.normal(size=(SAMPLES, 6)).astype(np.float32)
OTHERS = RNG.normal(size=(SAMPLES, 6)).astype(np.float32)
SERIES = RNG.normal(size=(SAMPLES, 5, 4)).astype(np.float32)
IMAGES = RNG.normal(size=(SAMPLES, 8, 8, 2)).astype(np.float32)
WORDS = RNG.integers(0, 11, (SAMPLES, 5)).astype(np.int32)


def sequential(*inner, shape=(6,), dtype=None):
    return lambda: keras.Sequential([layers.Input(shape, dtype=dtype), *(make() for make in inner)])


def dense(units=3, **settings):
    return lambda: layers.Dense(units, activation="tanh", **settings)


def two_ways(structure):
    """A functional model with two inputs and two outputs, given as ``structure`` makes them."""
    def make():
        a, b = layers.Input((6,), name="a"), layers.Input((6,), name="b")
        mixed = layers.Concatenate()([layers.Dense(4)(a), b])
        outputs = {"one": layers.Dense(2)(mixed), "two": layers.Dense(1)(layers.Multiply()([a, b]))}
        return keras.Model(structure(a, b), outputs)
    return make


def shared():
    inputs, layer = layers.Input((6,)), layers.Dense(6, activation="tanh")
    return keras.Model(inputs, layers.Dense(2)(layer(layer(inputs))))


def attention():
    inputs = layers.Input((5, 4))
    mixed = layers.MultiHeadAttention(2, 3)(inputs, inputs, use_causal_mask=True)
    return keras.Model(inputs, layers.Dense(2)(layers.LayerNormalization()(layers.Add()([inputs, mixed]))))


def partly_frozen():
    model = sequential(dense(5), dense(4), dense())()
    model.layers[1].trainable = False
    return model


class Subclassed(keras.Model):
    """Built by its first call alone; ``spare`` never has a gradient."""

    def __init__(self):
        super().__init__()
        self.first, self.second = layers.Dense(5, activation="tanh"), layers.Dense(2)
        self.spare = self.add_weight(shape=(3,), name="spare")

    def call(self, inputs):
        return self.second(self.first(inputs))


class Pair(keras.Model):
    def __init__(self):
        super().__init__()
        self.layer = layers.Dense(3, activation="tanh")

    def call(self, a, b, training=None):
        return self.layer(a) * self.layer(b)


class Whole(Pair):
    def call(self, inputs):
        a, b = (inputs["a"], inputs["b"]) if isinstance(inputs, dict) else inputs
        return self.layer(a) * self.layer(b)


DICT, BOTH = {"a": POINTS, "b": OTHERS}, ((POINTS, OTHERS), POINTS)
CASES = {  # how it is made, on which data, and how Keras itself would be called with a batch
    "sequential": (sequential(dense(8), layers.LayerNormalization, dense()), POINTS, None),
    "sequential, not built": (lambda: keras.Sequential([dense(8)(), dense()()]), POINTS, None),
    "functional of a list": (two_ways(lambda a, b: [a, b]), BOTH, lambda model, batch: model(list(batch[0]))),
    "functional of a list, by name": (two_ways(lambda a, b: [a, b]), DICT, None),
    "functional of a dictionary": (two_ways(lambda a, b: {"a": a, "b": b}), DICT, None),
    "a dictionary with more in it": (two_ways(lambda a, b: {"a": a, "b": b}), {**DICT, "c": POINTS},
                                     lambda model, batch: model({"a": batch["a"], "b": batch["b"]})),
    "subclassed": (Subclassed, POINTS, None),
    "subclassed, a tuple spread": (Pair, BOTH, lambda model, batch: model(*batch[0])),
    "subclassed, a dictionary spread": (Pair, DICT, lambda model, batch: model(**batch)),
    "subclassed, a tuple whole": (Whole, BOTH, lambda model, batch: model(batch[0])),
    "subclassed, a dictionary whole": (Whole, DICT, None),
    "shared layer": (shared, POINTS, None),
    "frozen": (partly_frozen, POINTS, None),
    "regularised": (sequential(dense(8, kernel_regularizer="l2", activity_regularizer="l2"),
                               dense(bias_regularizer="l1")), POINTS, None),
    "convolution": (sequential(lambda: layers.Conv2D(4, 3), layers.MaxPooling2D, lambda: layers.SeparableConv2D(3, 2),
                               layers.GlobalAveragePooling2D, shape=(8, 8, 2)), IMAGES, None),
    "embedding, lstm": (sequential(lambda: layers.Embedding(11, 4, mask_zero=True), lambda: layers.LSTM(4), shape=(5,),
                                   dtype="int32"), WORDS, None),
    "gru, both ways": (sequential(lambda: layers.Bidirectional(layers.GRU(3, return_sequences=True)),
                                  lambda: layers.SimpleRNN(3), shape=(5, 4)), SERIES, None),
    "attention": (attention, SERIES, None),
    "group normalisation": (sequential(lambda: layers.GroupNormalization(2), dense(), shape=(8, 8, 2)), IMAGES, None),
    "float64": (sequential(dense(8, dtype="float64"), dense(dtype="float64")), POINTS, None),
}


def same(mine, wanted, tolerance=2e-5):
    assert mine.keys() == wanted.keys()
    for name in mine:
        np.testing.assert_allclose(mine[name], wanted[name], rtol=tolerance, atol=tolerance, err_msg=name)


SLOW = ("gru, both ways",)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.soak] if name in SLOW else []) for name in CASES])
def test_gradients_are_the_tapes_however_the_batch_is_split(name):
    make, data, forward = CASES[name]
    rank = Rank(Small(make, data))
    everything = np.arange(SAMPLES)
    loss, wanted = plain(rank, everything, forward or (lambda model, batch: model(batch)))
    assert sum(np.abs(gradient).sum() for gradient in wanted.values()) > 1e-2
    for pieces in ([everything], [everything[:5], everything[5:]], np.array_split(everything, 5)):
        reduced = rank.gradients(pieces)
        assert reduced.loss == pytest.approx(loss, rel=1e-5)
        same(rank.named(), wanted)
    assert rank.adapter._steps.compute_graphs.traces == 1
    before = rank.state()
    rank.train(2)
    assert rank.state() != before


def test_a_rank_without_samples_and_unequal_ranks_give_the_same_sum():
    def work(world):
        rank = Rank(Small(CASES["regularised"][0], POINTS), world)
        whole = rank.gradients([[np.arange(7)], [np.arange(7, SAMPLES)], []][world.rank])
        return whole.loss, rank.named()

    single = Rank(Small(CASES["regularised"][0], POINTS))
    loss, wanted = single.gradients().loss, single.named()
    for mine, gradients in together(work, 3):
        assert mine == pytest.approx(loss, rel=1e-6)
        same(gradients, wanted, 1e-6)


def test_a_variable_without_a_gradient_has_zeros_and_stays():
    rank = Rank(Small(Subclassed, POINTS), optim={"name": "adam", "lr": 0.1})
    rank.gradients()
    spare = next(name for name in rank.named() if name.endswith("spare"))
    assert not rank.named()[spare].any()
    before = rank.state()[f"model/{spare}"]
    rank.train(3)
    assert rank.state()[f"model/{spare}"] == before


def test_frozen_weights_stay_and_belong_to_the_checkpoint():
    rank = Rank(Small(partly_frozen, POINTS), optim={"name": "sgd", "lr": 0.1, "groups": [
        {"params": "*dense_2/bias", "freeze": True}]})
    frozen = ["model/sequential/dense_1/kernel", "model/sequential/dense_1/bias", "model/sequential/dense_2/bias"]
    before = rank.state()
    rank.train(2)
    after = rank.state()
    assert [name for name in before if name.startswith("model") and before[name] == after[name]] == frozen
    assert rank.adapter.parameter_count() == 6 * 5 + 5 + 4 * 3


def test_names_do_not_depend_on_what_was_built_before():
    def make():
        inputs = layers.Input((6,))
        hidden = layers.Dense(4, name="head")(layers.Dense(3)(inputs))
        return keras.Model(inputs, layers.Dense(2)(layers.BatchNormalization()(hidden)))

    wanted = ["dense/kernel", "dense/bias", "head/kernel", "head/bias", "batch_normalization/gamma",
              "batch_normalization/beta", "dense_1/kernel", "dense_1/bias", "batch_normalization/moving_mean",
              "batch_normalization/moving_variance"]
    for _ in range(2):
        groups = Rank(Small(make, POINTS), optim={"name": "adam", "lr": 0.1}).adapter.export()
        assert sorted(groups["model"]) == sorted(wanted)
        assert set(groups["optimizer"]) == {"iterations", *(
            f"{name}/{slot}" for name in wanted[:8] for slot in ("momentum", "velocity"))}


def test_bits_do_not_depend_on_how_gradients_lie_in_buckets():
    """Embeddings' sparse gradients included; many small buckets are handed over in other turns than one large one."""
    make = sequential(lambda: layers.Embedding(11, 4), layers.Flatten, dense(), shape=(5,), dtype="int32")
    states = [Rank(Small(make, WORDS), optim={"name": "adam", "lr": 0.1}, comm=comm) for comm in (
        {}, {"bucket_mb": 0.0001, "first_bucket_mb": 0.0001})]
    for rank in states:
        rank.train(3)
    assert states[0].state() == states[1].state()


class Late(keras.Model):
    def __init__(self):
        super().__init__()
        self.layer, self.more = layers.Dense(3), None
        self.built = True
        self.layer.build((None, 6))

    def call(self, inputs, training=None):
        if training and self.more is None:
            with tf.init_scope():
                self.more = layers.Dense(3)
                self.more.build((None, 3))
        return self.layer(inputs)


def test_variables_that_come_too_late_are_refused():
    with pytest.raises(UserCodeError, match="made the variables .*dense.*kernel.* in its first training step.*build()"):
        Rank(Small(Late, POINTS))


@pytest.mark.parametrize("outcome, message", [
    (lambda outputs: outputs, r"Task.loss gave shape \(None, 3\); it must give one loss per sample"),
    (lambda outputs: tf.reshape(outputs, [-1]), "Task.loss gave 12 losses for a batch of 4 samples"),
    (lambda outputs: None, "Task.loss gave a NoneType"),
])
def test_losses_of_a_wrong_shape_are_explained(outcome, message):
    """Also where the shape is known only once the graph runs."""
    with pytest.raises(UserCodeError, match=message):
        Rank(Small(sequential(dense()), POINTS, lambda outputs, batch: outcome(outputs)))


def test_a_wrong_number_of_metric_values_is_explained():
    rank = Rank(Small(sequential(dense()), POINTS, metrics=lambda outputs, batch: {"size": ops.ravel(outputs)}))
    with pytest.raises(UserCodeError, match="Task.metrics gave 36 values for 'size' for a batch of 12 samples"):
        rank.adapter.evaluate([(POINTS, SAMPLES)], False)


def test_an_error_while_tracing_is_the_users_own():
    def broken_loss(outputs, batch):
        return outputs.no_such_attribute

    with pytest.raises(AttributeError, match="no_such_attribute") as caught:
        Rank(Small(sequential(dense()), POINTS, broken_loss))
    assert caught.traceback[-2].name == "broken_loss" or caught.traceback[-1].name == "broken_loss"


def test_an_error_within_the_graph_names_the_users_line():
    def broken_loss(outputs, batch):
        return ops.sum(ops.reshape(outputs, (-1, 7)), axis=1)

    with pytest.raises(UserCodeError, match="the training step failed in its graph: InvalidArgumentError: Input to reshape is a "
                                            "tensor with 12 values") as caught:
        Rank(Small(sequential(dense()), POINTS, broken_loss))
    assert "in broken_loss" in caught.value.traceback_text and __file__ in caught.value.traceback_text


def test_a_scalar_loss_is_the_mean():
    means = Rank(Small(sequential(dense()), POINTS, lambda outputs, batch: tf.reduce_mean(squares(outputs, batch))))
    sums = Rank(Small(sequential(dense()), POINTS))
    assert means.gradients().loss == pytest.approx(sums.gradients().loss, rel=1e-6)
    same(means.named(), sums.named(), 1e-6)
    assert means.adapter.evaluate([(POINTS[:5], 5), (POINTS[5:], 7)], False)["loss"] == pytest.approx(
        sums.adapter.evaluate([(POINTS, SAMPLES)], False)["loss"], rel=1e-6)
