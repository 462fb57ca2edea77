"""What becomes of batches in the Keras adapter: tensors, one trace for every size, the task's tf.data pipeline."""

from __future__ import annotations

from collections import namedtuple

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from hvtrain import adapters
from hvtrain.adapters.keras.batches import AnyBatch, tensors
from hvtrain.data import as_source
from hvtrain.errors import UserCodeError
from tests.support.keras_small import SAMPLES, Rank, Small

POINTS = np.random.default_rng(5).normal(size=(SAMPLES, 6)).astype(np.float32)


def sums():
    """The sum of a batch, and what it was traced for."""
    shapes = []

    def work(batch, factor):
        shapes.append([tuple(part.shape) for part in tf.nest.flatten(batch)])
        return tf.add_n([tf.reduce_sum(part) for part in tf.nest.flatten(batch)]) * factor

    return AnyBatch(work, [tf.TensorSpec([], tf.float32)]), shapes


def test_batches_of_every_size_go_through_one_trace():
    traced, shapes = sums()
    for size in (4, 1, 7, 4):
        assert float(traced(tensors((np.ones((size, 3), "f4"), np.ones(size, "f4"))), tf.constant(2.0))) == 8 * size
    assert shapes == [[(None, 3), (None,)]] and traced.traces == 1


def test_other_extents_take_one_more_trace_whatever_they_are():
    traced, shapes = sums()
    for height, width in [(5, 6), (5, 7), (5, 9), (5, 6), (8, 6), (9, 3), (5, 8)]:
        assert float(traced(tensors(np.ones((2, height, width), "f4")), tf.constant(1.0))) == 2 * height * width
    assert shapes == [[(None, 5, 6)], [(None, 5, None)], [(None, None, 6)], [(None, None, None)]]
    late, shapes = sums()
    for height, width in [(5, 6), (9, 3)]:  # what came between does not matter
        late(tensors(np.ones((2, height, width), "f4")), tf.constant(1.0))
    assert shapes == [[(None, 5, 6)], [(None, None, None)]]


def test_other_structures_and_types_have_traces_of_their_own():
    traced, shapes = sums()
    for batch in ({"a": np.ones((2, 3), "f4")}, [np.ones((2, 3), "f4")], np.ones((2, 3), "f4"), np.ones((2, 3), "f4")):
        traced(tensors(batch), tf.constant(1.0))
    assert traced.traces == 3


def test_what_makes_a_tensor():
    Pair = namedtuple("Pair", "x y")
    got = tensors(Pair([1.5, 2.5], {"words": ["a", "bc"], "rows": np.ones((2, 2))}))
    assert isinstance(got, Pair) and got.y["words"].dtype == tf.string and got.y["words"].shape == (2,)
    assert got.y["rows"].dtype == tf.float64
    for wrong, message in [(tf.ragged.constant([[1], [2, 3]]), "RaggedTensor; only dense"), (object(), "object, which makes no")]:
        with pytest.raises(UserCodeError, match=message):
            tensors((wrong, np.ones(2)))


def test_training_on_series_of_any_length_and_the_short_last_batch():
    def make():
        return keras.Sequential([layers.Input((None, 3)), layers.GRU(4), layers.Dense(2)])

    rank = Rank(Small(make, np.ones((SAMPLES, 5, 3), np.float32)))
    losses = []
    for step, (count, length) in enumerate([(4, 5), (3, 5), (4, 8), (1, 11), (4, 2), (4, 5)]):
        rank.adapter.seed(step)
        losses.append(rank.adapter.gradients([np.ones((count, length, 3), np.float32)], [count], count, [0.0]).loss)
        rank.adapter.apply(step, 0.0)
    assert rank.adapter._steps.compute_graphs.traces == 2 and losses[0] == losses[-1] == pytest.approx(losses[1], rel=1e-6)


def test_keras_own_data_set_of_batches_is_known():
    class Twos(keras.utils.PyDataset):
        def __len__(self):
            return 3

        def __getitem__(self, number):
            return POINTS[2 * number:2 * number + 2], np.arange(2 * number, 2 * number + 2)

    points, places = as_source(Twos()).fetch(np.array([5, 0, 3]), seed=0, epoch=0)
    assert places.tolist() == [5, 0, 3]
    np.testing.assert_array_equal(points, POINTS[[5, 0, 3]])


class Piped(Small):
    """Adds noise of the seed's to every sample while it trains, and doubles what is evaluated."""

    def pipeline(self, dataset, split, seed):
        if split == "eval":
            return dataset.map(lambda points: points * 2)
        return dataset.unbatch().map(lambda point: tf.cast(point, tf.float32)).batch(1000).map(
            lambda points: points + tf.random.stateless_normal(tf.shape(points), seed))


def linear():
    return keras.Sequential([layers.Input((6,)), layers.Dense(2, kernel_initializer="ones")])


def test_a_pipeline_is_seeded_by_the_step_and_goes_into_the_same_trace():
    rank, other = Rank(Piped(linear, POINTS.astype(np.float64))), Rank(Piped(linear, POINTS.astype(np.float64)))
    losses = []
    for step in (0, 1, 0):
        rank.step = step
        losses.append(rank.gradients([np.arange(7), np.arange(7, SAMPLES)]).loss)
    assert losses[0] == losses[2] != losses[1]
    other.step = 1
    assert other.gradients([np.arange(7), np.arange(7, SAMPLES)]).loss == losses[1]
    assert rank.adapter._steps.compute_graphs.traces == 1
    plain = Rank(Small(linear, POINTS)).adapter.evaluate([(POINTS, SAMPLES)], False)["loss"]
    assert rank.adapter.evaluate([(POINTS, SAMPLES)], False)["loss"] == pytest.approx(4 * plain, rel=1e-6)


@pytest.mark.parametrize("pipeline, message", [
    (lambda dataset, split, seed: dataset.unbatch().batch(2), "failed in its graph: .*more than one element"),
    (lambda dataset, split, seed: dataset.unbatch().take(3).batch(9), "Task.loss gave 3 losses for a batch of 4 samples"),
    (lambda dataset, split, seed: dataset.map(lambda points: points + tf.random.normal(tf.shape(points))),
     r"random numbers by tf.random \(RandomStandardNormal\)"),
    (lambda dataset, split, seed: None, "Task.pipeline gave a NoneType; it must give a tf.data.Dataset"),
])
def test_pipelines_that_cannot_be_right_are_refused(pipeline, message):
    task = type("Wrong", (Small,), {"pipeline": staticmethod(pipeline)})
    with pytest.raises(UserCodeError, match=message):
        Rank(task(linear, POINTS))


def test_a_pipeline_is_not_passed_over_in_silence_by_other_frameworks():
    with pytest.raises(UserCodeError, match="pipeline, which is for framework: keras, but this job's is torch"):
        adapters.make("torch", task=Piped(linear, POINTS))


def test_a_model_that_is_not_built_sees_what_the_pipeline_gives():
    class Wider(Small):
        def pipeline(self, dataset, split, seed):
            return dataset.map(lambda points: tf.concat([points, points], 1))

    rank = Rank(Wider(lambda: keras.Sequential([layers.Dense(2)]), POINTS))
    assert rank.adapter.export()["model"]["sequential/dense/kernel"].shape == (12, 2)
