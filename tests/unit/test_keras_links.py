"""Keras models as chains of links, and what their links cost."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from hvtrain.hybrid.costs import ModelCosts
from hvtrain.hybrid.keras import profile
from hvtrain.hybrid.keras.links import chain
from hvtrain.hybrid.keras.profile import measure
from hvtrain.hybrid.keras.purity import Pure
from tests.support.keras_small import SAMPLES, Small
from tests.support.keras_stages import BOTH, POINTS, everything, logical_devices, random

logical_devices()


def run(cut, task, batch, training):
    with Pure(training) as pure:
        values = cut.begin(task, batch)
        for link in cut.links:
            values.update(zip(link.gives, link(values, training)))
    return cut.outputs(values), pure


@pytest.mark.parametrize("make,data", [(everything, BOTH), (random, POINTS)])
@pytest.mark.parametrize("training", [False, True])
def test_the_links_give_what_the_model_gives(make, data, training):
    """Values and added losses, and in training the same changes of variables; none is made."""
    task = Small(make, data)
    model = make()
    cut, batch = chain(model, task, data), tf.nest.map_structure(tf.convert_to_tensor, data)
    before = [variable.numpy() for variable in model.variables]
    mine, pure = run(cut, task, batch, training)
    with Pure(training) as whole:
        wanted = model(batch, training=training)
    tf.nest.map_structure(lambda one, other: np.testing.assert_array_equal(one, other), mine, wanted)
    assert [float(loss) for loss in pure.losses] == [float(loss) for loss in whole.losses]
    assert pure.written.keys() == whole.written.keys() and bool(pure.written) == (training and make is random)
    for key, value in pure.written.items():
        np.testing.assert_array_equal(value, whole.written[key])
    for value, variable in zip(before, model.variables):
        np.testing.assert_array_equal(value, variable.numpy())


def test_links_are_named_after_layers_and_say_what_they_take():
    model = everything()
    cut = chain(model, Small(everything, BOTH), BOTH)
    assert cut.source == "functional" and len(cut.links) == 9
    nested = [name for name in cut.names if "/" in name]
    assert len(nested) == 2 and nested[0].startswith("sequential"), "a Sequential model within is cut, too"
    skipping = next(link for link in cut.links if link.name.startswith("add"))
    assert len(skipping.takes) == 2
    assert chain(random(), Small(random, POINTS), POINTS).source == "Sequential"


def test_a_layer_that_says_nothing_of_training_tells_its_own_layers():
    class Outer(keras.Layer):
        def __init__(self):
            super().__init__()
            self.inner = layers.Dropout(0.5)

        def call(self, inputs):
            return self.inner(inputs)

    model = keras.Sequential([layers.Input((6,)), Outer()])
    task = Small(lambda: model, POINTS)
    assert np.any(run(chain(model, task, POINTS), task, POINTS, True)[0] == 0)
    assert not np.any(run(chain(model, task, POINTS), task, POINTS, False)[0] == 0)


def test_masks_go_from_link_to_link():
    words = np.array([[1, 2, 0, 0], [3, 0, 0, 0]], np.int32)
    model = keras.Sequential([layers.Input((4,), dtype="int32"), layers.Embedding(5, 3, mask_zero=True),
                              layers.Dropout(0.1), layers.LSTM(3)])
    task = Small(lambda: model, words)
    np.testing.assert_array_equal(run(chain(model, task, words), task, words, False)[0], model(words))


def test_costs_of_links():
    def make():
        return keras.Sequential([layers.Input((6,)), layers.Dense(8), layers.ReLU(), layers.BatchNormalization(),
                                 layers.Dropout(0.5), layers.Dense(2)])

    model = make()
    optimizer = keras.optimizers.Adam()
    optimizer.build(model.trainable_variables)
    before = [variable.numpy() for variable in (*model.variables, *optimizer.variables)]
    (costs,) = measure(model, Small(make, POINTS), POINTS, SAMPLES, "/CPU:0", optimizer)
    dense, relu, normal, drop, last = costs.layers
    assert [layer.name.rstrip("_0123456789") for layer in costs.layers] == [
        "dense", "re_lu", "batch_normalization", "dropout", "dense"]
    assert [layer.parameters for layer in costs.layers] == [4 * 7 * 8, 0, 4 * 4 * 8, 0, 4 * 9 * 2]
    assert [layer.output for layer in costs.layers] == [SAMPLES * width * 4 for width in (8, 8, 8, 8, 2)]
    assert dense.saved == costs.input == SAMPLES * 6 * 4, "its input, for the gradient of the kernel"
    assert relu.saved == SAMPLES * 8 * 4, "what it gives, for itself and for the next"
    assert 0 < normal.saved <= 4 * 8 * 4, "mean and deviation"
    assert drop.saved == SAMPLES * 8 * (4 + 1), "what it gives, and what it has dropped"
    assert last.saved == SAMPLES * 2 * 4, "what it gives, for the loss"
    assert all(layer.forward > 0 and layer.backward > 0 for layer in costs.layers)
    assert (costs.batch, costs.device) == (SAMPLES, "/CPU:0")
    assert costs.update > 0 and 2.0 == costs.state
    assert ModelCosts.from_json(costs.to_json()) == costs
    several = measure(model, Small(make, POINTS), POINTS, SAMPLES, "/CPU:0", sizes=(2, SAMPLES))
    assert [each.batch for each in several] == [2, SAMPLES] and several[0].layers[1].saved == 2 * 8 * 4
    assert len(measure(model, Small(make, POINTS), POINTS, SAMPLES, "/CPU:0", sizes=(2, SAMPLES), room=0)) == 1
    for value, variable in zip(before, (*model.variables, *optimizer.variables)):
        np.testing.assert_array_equal(value, variable.numpy())


def test_a_size_for_which_a_gpu_has_too_little_memory_is_left_out(monkeypatch):
    """How much TensorFlow takes of a GPU is known only when it is missing; the largest size was never tried there."""
    once = profile._Pass.once

    def with_little_memory(self):
        if self.count > 4:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
        return once(self)

    def make():
        return keras.Sequential([layers.Input((6,)), layers.Dense(8), layers.Dense(2)])

    monkeypatch.setattr(profile._Pass, "once", with_little_memory)
    found = measure(make(), Small(make, POINTS), POINTS, SAMPLES, "/CPU:0", sizes=(2, 4, 5, SAMPLES))
    assert [costs.batch for costs in found] == [2, 4]
