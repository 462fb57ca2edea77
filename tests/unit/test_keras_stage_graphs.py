"""What the stages of a Keras model run is traced once for any number of micro-batches; and what goes between them."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from hvtrain.errors import UserCodeError
from hvtrain.hybrid.keras import devices
from tests.support.keras_small import SAMPLES, Rank, Small, plain, squares
from tests.support.keras_stages import OTHERS, POINTS, logical_devices, pieces, small, staged

logical_devices()

CODES = np.tile(np.arange(SAMPLES)[:, None] % 5, (1, 6)) * (np.arange(6) < 1 + np.arange(SAMPLES)[:, None] % 6)


@pytest.fixture(scope="module", autouse=True)
def optimised_as_ever():
    """Stages switch some of TensorFlow's optimisations off, in their whole process; not for other tests."""
    before = tf.config.optimizer.get_experimental_options()
    yield
    tf.config.optimizer.set_experimental_options({**{key: True for key in devices.EXACT}, **before})


def same(one: Rank, two: Rank, count: int = 3) -> None:
    """Both train to the same bits."""
    ours, theirs = ([result.loss for result in rank.train(2, pieces(count))] for rank in (one, two))
    assert ours == theirs
    assert one.state() == two.state()


def test_a_stage_is_traced_once_for_any_number_of_micro_batches():
    """So neither a replacement nor a survivor with another share has to trace more, or again."""
    asked = []

    def loss(outputs, batch):
        asked.append(outputs.shape)
        return squares(outputs, batch)

    def made():
        return staged(small, POINTS, [2, 2], 8, task={"its_loss": loss})

    rank = made()
    assert len(asked) == 1
    for count in (1, 3, 8):
        rank.gradients(pieces(count))
    rank.gradients([np.arange(1), np.arange(4)], total=5)
    assert len(asked) == rank.adapter._steps.compute_graphs.traces == 1


def test_micro_batches_of_other_extents_go_through_graphs_of_their_own():
    def make():
        return keras.Sequential([layers.Input((None, 6)), layers.Dense(6, activation="tanh"),
                                 layers.GlobalAveragePooling1D(), layers.Dense(2)])

    short, long = POINTS[:4, None, :], np.stack([POINTS[4:8], OTHERS[4:8]], 1)

    def trained(split):
        rank = staged(make, short, split, 2)
        rank.adapter.seed(0)
        loss = rank.adapter.gradients([short, long, short], [4, 4, 4], 12, [0.0]).loss
        return rank, loss, rank.named()

    (one, loss, gradients), (two, again, others) = trained([3]), trained([1, 2])
    assert loss == again and two.adapter._steps.compute_graphs.traces == 2
    for name, gradient in gradients.items():
        np.testing.assert_array_equal(gradient, others[name])
    wanted = {}
    for batch in (short, long, short):
        one.task.arrays = batch
        for name, gradient in plain(one, slice(None), lambda model, batch: model(batch))[1].items():
            wanted[name] = wanted.get(name, 0) + gradient / 3
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, wanted[name], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("recompute", [False, True])
def test_masks_and_loops_across_stages(recompute):
    """A mask goes with its value to the next stage; what a loop keeps for backward, too."""
    def make():
        return keras.Sequential([
            layers.Input((6,), dtype="int32"), layers.Embedding(5, 4, mask_zero=True), layers.Dense(4),
            layers.LSTM(3, return_sequences=True), layers.LSTM(3), layers.Dense(2)])

    one, two = (staged(make, CODES, split, hybrid={"recompute": recompute}) for split in ([6], [1, 3, 2]))
    same(one, two)
    _, wanted = plain(one, np.arange(SAMPLES), lambda model, batch: model(batch))
    one.gradients(pieces(3))
    for name, gradient in one.named().items():
        np.testing.assert_allclose(gradient, wanted[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_a_layer_that_stages_share_and_a_value_that_goes_past_one():
    """The gradient of the layer's variables comes back to where they lie, past a stage that knows nothing of them."""
    def make():
        inputs, shared = layers.Input((6,)), layers.Dense(6, activation="tanh", kernel_regularizer="l2")
        first = shared(inputs)
        middle = layers.Dense(6, activation="tanh")(first)
        return keras.Model(inputs, layers.Add()([shared(middle), first]))

    one, three = (staged(make, POINTS, split) for split in ([4], [1, 1, 2]))
    third = three.adapter._steps.compute_graphs._kinds[0][2]
    (stages,) = third.values()
    assert [len(stage.passed) for stage in stages] == [0, 0, 2] and [len(stage.totals) for stage in stages] == [2, 2, 0]
    same(one, three)


def test_the_last_stage_sees_what_the_pipeline_has_made_of_the_batch():
    def make():
        return keras.Sequential([layers.Input((6,)), layers.Dense(6, activation="tanh"), layers.Dense(6)])

    class Piped(Small):
        def inputs(self, batch):
            return batch[0]

        def pipeline(self, dataset, split, seed):
            return dataset.map(lambda points, others: (
                points + tf.random.stateless_normal(tf.shape(points), seed), others * 2))

    def made(split):
        task = Piped(make, (POINTS, OTHERS), lambda outputs, batch: squares(outputs - batch[1], batch))
        return Rank(task, data={"global_batch": SAMPLES}, hybrid={
            "stages": len(split), "split": split, "microbatches": 2, "devices": "cpu"})

    same(made([2]), made([1, 1]))


def test_what_fails_in_a_stage_ends_the_step_with_its_own_words():
    class Picky(keras.Layer):
        def call(self, inputs):
            with tf.control_dependencies([tf.debugging.assert_less(tf.reduce_max(inputs), 50.0, "too large")]):
                return tf.identity(inputs)

    data = POINTS.copy()
    data[8] = 100.0
    rank = staged(lambda: keras.Sequential([layers.Input((6,)), Picky(), layers.Dense(2)]), data, [1, 1])
    with pytest.raises(UserCodeError, match="the training step failed in its graph"):
        rank.gradients(pieces(4))
    assert np.isfinite(rank.gradients([np.arange(4), np.arange(4)], total=8).loss), "the threads are there"
