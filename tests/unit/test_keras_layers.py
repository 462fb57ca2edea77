"""Keras layers with a state: statistics are averaged over the ranks, seeds are set anew, other changes are refused."""

from __future__ import annotations

from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from hvtrain.errors import RoundBroken, UsageError, UserCodeError
from tests.support.keras_small import SAMPLES, Rank, Small
from tests.support.threads import together

POINTS = np.random.default_rng(5).normal(size=(SAMPLES, 6)).astype(np.float32)
PARTS = [np.arange(5), np.arange(5, SAMPLES)]


def normal():
    return keras.Sequential([layers.Input((6,)), layers.Dense(4), layers.BatchNormalization(momentum=0.9), layers.Dense(2)])


def statistics(rank):
    return {name: blob.to_numpy().copy() for name, blob in rank.adapter.export()["model"].items() if "moving" in name}


def test_statistics_are_the_mean_over_the_ranks_by_their_samples():
    """Each rank normalises by its own samples; the moving statistics are averaged, 5 to 7 here."""
    def work(world):
        rank = Rank(Small(normal, POINTS), world)
        rank.train(1, [PARTS[world.rank]])
        return statistics(rank), rank.state()

    lone = [Rank(Small(normal, POINTS)) for _ in PARTS]
    start = statistics(lone[0])
    for rank, part in zip(lone, PARTS):
        rank.gradients([part], total=len(part))
        rank.adapter.apply(0, 0.0)
    alone = [statistics(rank) for rank in lone]
    (first, state), (second, other) = together(work)
    assert state == other and first.keys() == start.keys()
    for name in start:
        assert not np.allclose(alone[0][name], start[name])
        wanted = start[name] + 5 / 12 * (alone[0][name] - start[name]) + 7 / 12 * (alone[1][name] - start[name])
        np.testing.assert_allclose(first[name], wanted, rtol=1e-5)
        np.testing.assert_array_equal(first[name], second[name])


def test_a_step_that_breaks_off_changes_no_bit():
    def work(world):
        rank = Rank(Small(normal, POINTS), world, optim={"name": "adam", "lr": 0.1}, train={"ema": 0.9})
        rank.train(2)
        before = rank.state()
        world.breaks_at = len(world.sums) + 1
        with pytest.raises(RoundBroken):
            rank.gradients()
        assert rank.state() == before
        world.breaks_at = None
        rank.train(1)
        return rank.state()

    def undisturbed(world):
        rank = Rank(Small(normal, POINTS), world, optim={"name": "adam", "lr": 0.1}, train={"ema": 0.9})
        rank.train(3)
        return rank.state()

    assert together(work) == together(undisturbed)


def test_warming_up_leaves_nothing():
    rank = Rank(Small(normal, POINTS), optim={"name": "adam", "lr": 0.1})
    keras.utils.set_random_seed(0)
    fresh = [variable.numpy() for variable in normal().variables]
    for blob, wanted in zip(rank.adapter.model.variables, fresh):
        np.testing.assert_array_equal(blob.numpy(), wanted)
    assert int(rank.adapter.optimizer.iterations) == 0


class Noisy(layers.Layer):
    """Draws from Keras's global generator, without one of its own."""

    def call(self, inputs, training=None):
        return inputs + keras.random.normal(ops.shape(inputs)) if training else inputs


RANDOM = {  # each random number shows in a gradient
    "dropout": lambda: [layers.Dropout(0.5)], "noise": lambda: [layers.GaussianNoise(1.0)], "global": lambda: [Noisy()],
    "flip": lambda: [layers.Reshape((3, 2, 1)), layers.RandomFlip(), layers.Flatten()],
    "recurrent": lambda: [layers.Reshape((3, 2)), layers.SimpleRNN(5, recurrent_dropout=0.5, dropout=0.3)]}


def drawn(rank, step, pieces=None):
    """The gradients of that step on that rank alone."""
    rank.step = step
    rank.gradients(pieces)
    return np.concatenate([gradient.ravel() for gradient in rank.named().values()])


@pytest.mark.parametrize("kind", RANDOM)
def test_random_numbers_follow_from_seed_step_rank_and_micro_batch(kind):
    def make(**sections):
        return Rank(Small(lambda: keras.Sequential([layers.Input((6,)), *RANDOM[kind](), layers.Dense(2)]), POINTS), **sections)

    rank, again = make(), make()
    first, whole = drawn(rank, 5), [np.arange(SAMPLES)]
    assert (drawn(rank, 6) != first).any()
    rank.adapter.evaluate([(POINTS, SAMPLES)], False)
    assert (drawn(rank, 5) == first).all(), "it depends on what was drawn before"
    assert (drawn(again, 5) == first).all()
    assert np.abs(drawn(rank, 5, whole * 2) - 2 * first).max() > 1e-3, "both micro-batches drew the same"
    again.adapter._world = SimpleNamespace(rank=1, noise=lambda seed: None)  # sums stay its own
    assert (drawn(again, 5) != first).any(), "another rank drew the same"


def test_another_seed_draws_other_numbers():
    def make(seed):
        dropout = [layers.Input((6,)), layers.Dropout(0.5), layers.Dense(2, kernel_initializer="ones")]
        return Rank(Small(lambda: keras.Sequential(dropout), POINTS), run={"seed": seed})

    assert (drawn(make(0), 0) != drawn(make(1), 0)).any()


class Counting(layers.Layer):
    """Changes a weight of its own in the forward pass."""

    def __init__(self, dtype="float32", **settings):
        super().__init__(**settings)
        self.calls = self.add_weight(shape=(), initializer="zeros", dtype=dtype, trainable=False, name="calls")

    def call(self, inputs):
        self.calls.assign_add(ops.cast(ops.shape(inputs)[0], self.calls.dtype))
        return inputs


class Outside(layers.Layer):
    """Keeps a counter that belongs to no layer."""

    counter = None

    def call(self, inputs):
        if Outside.counter is None:
            with tf.init_scope():
                Outside.counter = tf.Variable(0.0, name="counter")
        Outside.counter.assign_add(1.0)
        return inputs


class Unseeded(layers.Layer):
    def call(self, inputs):
        return inputs + tf.random.normal(tf.shape(inputs))


def with_layer(make):
    return lambda: keras.Sequential([layers.Input((6,)), make(), layers.Dense(2)])


@pytest.mark.parametrize("make, message", [
    (Counting, r"changes the variable 'counting/calls'.*averaged_buffers = \['counting/calls'\]"),
    (lambda: Counting(dtype="int32"), "'counting/calls'.*holds int32, which cannot be averaged"),
    (Outside, "changes the variable 'counter:0', which does not belong to the model's.*add_weight"),
    (Unseeded, r"random numbers by tf.random \(RandomStandardNormal\).*keras.random.SeedGenerator"),
    (lambda: layers.SpectralNormalization(layers.Dense(3)), "changes the trainable variable .*kernel'"),
    (lambda: layers.BatchNormalization(synchronized=True), "synchronized=True.*Leave it out"),
])
def test_what_would_let_ranks_drift_apart_is_refused(make, message):
    with pytest.raises(UserCodeError, match=message):
        Rank(Small(with_layer(make), POINTS))


def test_a_variable_can_be_averaged_on_request():
    def work(world):
        rank = Rank(Small(with_layer(Counting), POINTS, averaged_buffers=["*/calls"]), world)
        rank.train(2, [PARTS[world.rank]])
        return float(rank.adapter.export()["model"]["counting/calls"].to_numpy())

    assert together(work) == pytest.approx([2 * (5 * 5 + 7 * 7) / 12] * 2, rel=1e-6)


def test_changes_within_a_condition_or_a_compiled_graph_are_found_too():
    class Hidden(Counting):
        def call(self, inputs):
            tf.cond(tf.reduce_sum(inputs) > 1e9, lambda: self.calls.value.assign_add(1.0), lambda: self.calls.value + 0)
            return inputs

    for train in ({}, {"jit_compile": True}):
        with pytest.raises(UserCodeError, match="hidden.*/calls.*averaged_buffers"):
            Rank(Small(with_layer(Hidden), POINTS), train=train)


def test_precision_that_the_model_does_not_have_is_refused():
    built = normal()
    with pytest.raises(UsageError, match="train.precision is bf16, but no layer of the model computes in bfloat16"):
        Rank(Small(lambda: built, POINTS), train={"precision": "bf16"})

    def half():
        return keras.Sequential([layers.Input((6,)), layers.Dense(2, dtype="mixed_float16")])

    with pytest.raises(UsageError, match="computes in float16, but train.precision is fp32.*train.precision=fp16"):
        Rank(Small(half, POINTS))


@pytest.mark.parametrize("precision, dtype", [("bf16", "bfloat16"), ("fp16", "float16")])
def test_mixed_precision_computes_in_half_and_keeps_float32(precision, dtype):
    def penalised():
        return keras.Sequential([layers.Input((6,)), layers.Dense(8, activity_regularizer="l2", kernel_regularizer="l2"),
                                 layers.BatchNormalization(), layers.Dense(2)])

    seen = []

    def loss(outputs, batch):
        seen.append(outputs.dtype.name)
        return tf.reduce_sum(tf.square(outputs), 1)

    exact = Rank(Small(penalised, POINTS, loss))
    rank = Rank(Small(penalised, POINTS, loss), train={
        "precision": precision, "ema": 0.9, **({"loss_scale": 256} if precision == "fp16" else {})})
    assert seen == ["float32", dtype] and keras.config.dtype_policy().name == "float32"
    exact.gradients(), rank.gradients()
    factor = 256.0 if precision == "fp16" else 1.0
    mine, wanted = (np.concatenate([part.ravel() for part in each.named().values()]) for each in (rank, exact))
    assert np.linalg.norm(mine / factor - wanted) < {"bf16": 3e-2, "fp16": 5e-3}[precision] * np.linalg.norm(wanted)
    first, *_, last = rank.train(40)
    assert last.loss < first.loss / 2
    assert {blob.dtype for group in rank.adapter.export().values() for name, blob in group.items()
            if name != "iterations"} == {"F32"}


def test_an_overflow_leaves_the_step_out_on_all_ranks():
    def work(world):
        scale = tf.Variable(1.0)
        rank = Rank(Small(normal, POINTS, lambda outputs, batch: tf.reduce_sum(tf.cast(outputs, tf.float32)**2, 1) * scale),
                    world, train={"precision": "fp16", "loss_scale": 1024}, optim={"name": "adam", "lr": 0.01})
        rank.train(2)
        before = {name: digest for name, digest in rank.state().items() if name != "scalars"}
        if world.rank == 1:
            scale.assign(1e30)
        reduced, = rank.train(1)
        assert reduced.overflow and rank.metrics["skipped"] == 1.0
        assert {name: digest for name, digest in rank.state().items() if name != "scalars"} == before
        scale.assign(1.0)
        reduced, = rank.train(1)
        assert not reduced.overflow and rank.metrics["loss_scale"] == 512.0 and rank.metrics["skipped"] == 0.0
        other = Rank(rank.task, world, train={"precision": "fp16", "loss_scale": 1024}, optim={"name": "adam", "lr": 0.01})
        rank.pass_on(other)
        assert other.state() == rank.state()
        return rank.state()

    first, second = together(work)
    assert first == second


def test_compiled_by_xla_the_numbers_are_the_same():
    plain, compiled = Rank(Small(normal, POINTS)), Rank(Small(normal, POINTS), train={"jit_compile": True})
    for rank in (plain, compiled):
        rank.train(3, [np.arange(8), np.arange(8, SAMPLES)])
    for name, blob in plain.adapter.export()["model"].items():
        np.testing.assert_allclose(blob.to_numpy(), compiled.adapter.export()["model"][name].to_numpy(), atol=1e-5)
    assert compiled.adapter._steps.compute_graphs.traces == 1
