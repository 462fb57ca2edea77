"""Keras models that cannot be cut into links: measured as one layer, trained in one stage, refused in two."""

from __future__ import annotations

from dataclasses import dataclass

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from hvtrain.config import load
from hvtrain.errors import Uncuttable
from hvtrain.hybrid.keras import devices
from hvtrain.hybrid.keras.links import chain
from hvtrain.hybrid.keras.profile import measure
from hvtrain.hybrid.measuring import Request
from hvtrain.launch import trials
from tests.support.keras_small import SAMPLES, Rank, Small, plain
from tests.support.keras_stages import BOTH, OTHERS, POINTS, logical_devices, pieces, staged

logical_devices()


@pytest.fixture(scope="module", autouse=True)
def optimised_as_ever():
    """Stages switch some of TensorFlow's optimisations off, in their whole process; not for other tests."""
    before = tf.config.optimizer.get_experimental_options()
    yield
    tf.config.optimizer.set_experimental_options({**{key: True for key in devices.EXACT}, **before})


class Skipping(keras.Model):
    """Its layers are called in the order in which they were made, but what enters the first is added to what the last
    gives."""

    def __init__(self):
        super().__init__()
        self.first = layers.Dense(6, activation="tanh", activity_regularizer="l2")
        self.second = layers.Dense(6, kernel_regularizer="l2")

    def call(self, inputs):
        return self.second(self.first(inputs)) + inputs


class Restless(keras.Model):
    """With statistics and random numbers."""

    def __init__(self):
        super().__init__()
        self.dense, self.normal, self.drop = layers.Dense(6), layers.BatchNormalization(momentum=0.8), layers.Dropout(0.4)

    def call(self, inputs, training=None):
        return self.drop(self.normal(self.dense(inputs), training=training), training=training) + inputs


@dataclass
class Answer:
    """An output that is no structure of tensors, for Keras."""

    points: tf.Tensor


class Asking(Skipping):
    """Takes two arguments, gives an object."""

    def call(self, a, b):
        return Answer(super().call(a) * b)


def asking(inputs):
    """The same model, which takes ``inputs`` as they are given."""
    return {"make": Asking, "data": inputs,
            "task": {"inputs": lambda batch: batch, "loss": lambda outputs, batch: tf.reduce_sum(outputs.points ** 2, 1)}}


def built(model, task):
    model(task.inputs(task.arrays))
    return model


# Measured -------------------------------------------------------------------------------------------------

def test_it_is_measured_as_one_layer_if_that_will_do():
    """Nothing of it is changed."""
    task = Small(Restless, POINTS)
    model = built(Restless(), task)
    optimizer = keras.optimizers.Adam()
    optimizer.build(model.trainable_variables)
    before = [variable.numpy() for variable in (*model.variables, *optimizer.variables)]
    with pytest.raises(Uncuttable, match="Restless. cannot be cut into stages"):
        measure(model, task, POINTS, SAMPLES)
    few, many = measure(model, task, POINTS, SAMPLES, "/CPU:0", optimizer, uncut=True, sizes=(2, SAMPLES))
    assert (few.batch, many.batch) == (2, SAMPLES) and few.input == 2 * 6 * 4 and many.state == 2.0
    (layer,) = many.layers
    assert (layer.name, layer.parameters, layer.output) == ("Restless", 4 * (7 * 6 + 4 * 6), SAMPLES * 6 * 4)
    assert layer.forward > 0 and layer.backward > 0 and layer.saved > SAMPLES * 6 * 4
    for value, variable in zip(before, (*model.variables, *optimizer.variables)):
        np.testing.assert_array_equal(value, variable.numpy())


def test_a_model_that_can_be_cut_is_cut_all_the_same():
    model = keras.Sequential([layers.Input((6,)), layers.Dense(6), layers.Dense(2)])
    (costs,) = measure(model, Small(lambda: model, POINTS), POINTS, SAMPLES, uncut=True)
    assert len(costs.layers) == 2


def test_the_measuring_process_says_why_there_is_one_layer(tmp_path):
    (tmp_path / "skipping.py").write_text(MODULE)
    (tmp_path / "job.yaml").write_text('version: 1\nframework: keras\ntask: {target: "skipping:Skip"}\n'
                                       'data: {global_batch: 4}\nhybrid: {stages: auto}\n')
    (found,) = trials.measure([Request(load(tmp_path / "job.yaml"), str(tmp_path), (4,))])
    assert [layer.name for layer in found.costs.layers] == ["Skipping"]
    assert "do not give what it gives" in found.whole
    # Where the job asks for two stages nobody needs that measurement: it took a minute, and then the job was refused.
    with pytest.raises(Uncuttable, match="^the model .* do not give what it gives"):
        trials.measure([Request(load(tmp_path / "job.yaml"), str(tmp_path), (4,), must_be_cut=True)])


MODULE = """
import keras, numpy as np
import hvtrain

class Skipping(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3)

    def call(self, inputs):
        return self.dense(inputs) + inputs

class Skip(hvtrain.Task):
    def model(self):
        return Skipping()

    def data(self, split):
        return hvtrain.ArraySource(np.ones((8, 3), np.float32), np.zeros(8, np.int64))

    def loss(self, outputs, batch):
        return keras.losses.sparse_categorical_crossentropy(batch[1], outputs, from_logits=True)
"""


# Trained --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("hybrid", [{}, {"recompute": True}, {"split": [3]}], ids=str)
def test_one_stage_has_the_gradients_of_the_tape(hybrid):
    rank = staged(Skipping, POINTS, [1], 3, hybrid=hybrid)
    loss, gradients = rank.gradients(pieces(1)).loss, rank.named()
    wanted_loss, wanted = plain(rank, np.arange(SAMPLES), lambda model, batch: model(batch))
    assert loss == pytest.approx(wanted_loss, rel=1e-6) and gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, wanted[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_it_trains_as_without_stages():
    """With the same micro-batches; only random numbers are others."""
    whole, one = Rank(Small(Skipping, POINTS)), staged(Skipping, POINTS, [1], 3)
    assert [result.loss for result in one.train(3, pieces(3))] == pytest.approx(
        [result.loss for result in whole.train(3, pieces(3))], rel=1e-5)
    one.pass_on(whole)
    assert whole.state() == one.state()
    ours, theirs = (rank.adapter.evaluate([(POINTS[:7], 7)], False) for rank in (one, whole))
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-6)


def test_recomputation_changes_no_bit():
    """Each micro-batch draws once, and each counts once in the statistics."""
    def mean(rank):
        return rank.adapter.export()["model"]["restless/batch_normalization/moving_mean"].to_numpy().copy()

    states = []
    for recompute in (False, True):
        rank = staged(Restless, POINTS, [1], 3, hybrid={"recompute": recompute})
        before = mean(rank)
        rank.train(2, pieces(3))
        assert not np.array_equal(before, mean(rank))
        states.append(rank.state())
        first, again = rank.gradients(pieces(3)).loss, rank.gradients(pieces(3)).loss
        rank.step += 1
        assert first == again != rank.gradients(pieces(3)).loss, "a step has random numbers of its own"
    assert states[0] == states[1]


@pytest.mark.parametrize("data", [(POINTS, OTHERS), BOTH], ids=["places", "keywords"])
@pytest.mark.parametrize("recompute", [False, True])
def test_it_may_take_several_arguments_and_give_anything(data, recompute):
    """Of an object that went to the loss by itself, as what goes between links does, nobody would see the tensors."""
    call = asking(data)
    rank = staged(call["make"], data, [1], 2, task=call["task"], hybrid={"recompute": recompute})
    whole = Rank(Small(call["make"], data, **call["task"]))
    losses = [result.loss for result in rank.train(3, pieces(2))]
    assert losses == pytest.approx([result.loss for result in whole.train(3, pieces(2))], rel=1e-5)
    assert losses[2] < losses[0] and all(gradient.any() for gradient in rank.named().values())
    (costs,) = measure(rank.adapter.model, rank.task, data, SAMPLES, uncut=True)
    assert [layer.name for layer in costs.layers] == ["Asking"] and costs.input == 2 * SAMPLES * 6 * 4


def test_two_stages_are_refused():
    with pytest.raises(Uncuttable, match="Skipping. cannot be cut into stages: its layers, one after another"):
        staged(Skipping, POINTS, [1, 1])


# What is no reason to call a model uncuttable ---------------------------------------------------------------

class Around(keras.Model):
    """Has one layer, and tells it when it calls it."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def call(self, inputs):
        self.layer.within = True
        try:
            return self.layer(inputs)
        finally:
            self.layer.within = False


class Greedy(keras.Layer):
    """Raises ``error`` when it is called by itself."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def call(self, inputs):
        if not self.within:
            raise self.error
        return inputs


@pytest.mark.parametrize("error", [MemoryError("not that much"), tf.errors.ResourceExhaustedError(None, None, "OOM")],
                         ids=["host", "device"])
def test_too_little_memory_says_nothing_about_the_model(error):
    """It was reported as a layer that does not take what the one before it gives."""
    model = Around(Greedy(error))
    with pytest.raises(type(error), match=str(error)):
        chain(model, Small(lambda: model, POINTS), POINTS)


def test_a_mistake_in_the_tasks_inputs_is_the_tasks():
    """Where they failed the second time, there was an UnboundLocalError about a variable of hvtrain's own."""
    places = iter([POINTS])
    model = Around(layers.Dense(2))
    model(POINTS)
    with pytest.raises(StopIteration):
        chain(model, Small(lambda: model, POINTS, inputs=lambda batch: next(places)), POINTS)


def test_what_is_measured_goes_through_the_pipeline_once():
    """Of a subclassed model it went through twice, the second time with what it had made itself."""
    class Scaled(Small):
        def pipeline(self, batches, split, seed):
            return batches.map(lambda batch: tf.ensure_shape(batch[:, :-1], [None, 6]) / 2)

    model = Around(layers.Dense(2))
    model(POINTS)
    wider = np.concatenate([POINTS, POINTS[:, :1]], 1)
    (costs,) = measure(model, Scaled(lambda: model, wider), wider, SAMPLES)
    assert costs.layers[0].name.startswith("dense") and costs.input == SAMPLES * 6 * 4
