"""A Keras model in stages trains as it does whole, to the same bits for any number of stages."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from hvtrain.errors import RoundBroken, UsageError, UserCodeError
from hvtrain.hybrid import schedule
from hvtrain.hybrid.keras import devices
from tests.support.keras_small import SAMPLES, Rank, Small, plain
from tests.support.keras_stages import BOTH, POINTS, everything, logical_devices, pieces, random, small, staged
from tests.support.threads import together

logical_devices()

soak = pytest.mark.soak
CUTS = [([3, 6], {}), ([1, 7, 1], {"schedule": "gpipe", "recompute": True}),
        pytest.param([1, 3, 2, 3], {}, marks=soak), pytest.param([2, 3, 4], {"schedule": "gpipe"}, marks=soak),
        pytest.param([4, 5], {"recompute": True}, marks=soak)]
COUNTS = [3, pytest.param(1, marks=soak), pytest.param(4, marks=soak), pytest.param(8, marks=soak)]
ADAM = {"optim": {"name": "adam", "lr": 0.01}}


@pytest.fixture(scope="module", autouse=True)
def optimised_as_ever():
    """Stages switch some of TensorFlow's optimisations off, in their whole process; not for other tests."""
    before = tf.config.optimizer.get_experimental_options()
    yield
    tf.config.optimizer.set_experimental_options({**{key: True for key in devices.EXACT}, **before})


@pytest.fixture(scope="module")
def one_stage():
    """``everything()`` in one stage with so many micro-batches: its loss and gradients, the tape's, its state after steps."""
    made = {}

    def after(count):
        if count not in made:
            rank = staged(everything, BOTH, [9], count)
            loss = rank.gradients(pieces(count)).loss
            gradients, wanted = rank.named(), plain(rank, np.arange(SAMPLES), lambda model, batch: model(batch))
            rank.train(2, pieces(count))
            made[count] = loss, gradients, wanted, rank.state()
        return made[count]

    return after


@pytest.mark.parametrize("count", COUNTS)
def test_one_stage_has_the_gradients_of_the_tape(count, one_stage):
    loss, gradients, (wanted_loss, wanted), _ = one_stage(count)
    assert loss == pytest.approx(wanted_loss, rel=1e-6)
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, wanted[name], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("split,hybrid", CUTS)
@pytest.mark.parametrize("count", COUNTS)
def test_the_number_of_stages_changes_no_bit(split, hybrid, count, one_stage):
    """Nor does the schedule, nor recomputation: loss, gradients, and the state after two steps."""
    rank = staged(everything, BOTH, split, count, hybrid=hybrid)
    loss, wanted, _, state = one_stage(count)
    assert rank.gradients(pieces(count)).loss == loss
    for variable, gradient in rank.named().items():
        np.testing.assert_array_equal(gradient, wanted[variable], err_msg=variable)
    rank.train(2, pieces(count))
    assert rank.state() == state


RICH = {**ADAM, "train": {"ema": 0.5, "grad_clip": 1e-3}}


@pytest.fixture(scope="module")
def random_alone():
    rank = staged(random, POINTS, [9], 2, **RICH)
    losses = [result.loss for result in rank.train(3, pieces(2))]
    return losses, rank.state()


@pytest.mark.parametrize("split,hybrid", [([2, 2, 5], {"schedule": "gpipe", "recompute": True}),
                                          pytest.param([3, 6], {}, marks=soak)])
def test_random_numbers_and_statistics_do_not_know_of_stages(split, hybrid, random_alone):
    """With recomputation, too, each micro-batch draws once, and each counts once in the statistics."""
    rank = staged(random, POINTS, split, 2, hybrid=hybrid, **RICH)
    assert [result.loss for result in rank.train(3, pieces(2))] == random_alone[0]
    assert rank.state() == random_alone[1]
    first, again = rank.gradients(pieces(2)).loss, rank.gradients(pieces(2)).loss
    rank.step += 1
    assert first == again != rank.gradients(pieces(2)).loss, "a step has random numbers of its own"


def test_clipping_does_not_know_of_stages():
    """The norm was summed up bucket by bucket, and a bucket ends where a stage does: where it is above its limit, and
    every gradient is multiplied by their ratio, the weights of two stages were not those of one."""
    def make():
        return keras.Sequential([layers.Input((6,)), *(layers.Dense(64, activation="tanh") for _ in range(4)), layers.Dense(2)])

    clipped = {**ADAM, "train": {"grad_clip": 1e-3}, "comm": {"bucket_mb": 16}}
    states = []
    for split in ([5], [2, 3], [4, 1], [1, 1, 3]):
        rank = staged(make, POINTS, split, 2, **clipped)
        rank.train(3, pieces(2))
        states.append(rank.state())
    assert all(state == states[0] for state in states)


def test_micro_batches_draw_random_numbers_of_their_own():
    rank = staged(lambda: keras.Sequential([layers.Input((6,)), layers.Dropout(0.5), layers.Dense(1, use_bias=False)]),
                  POINTS, [1, 1], 2, task={"loss": lambda outputs, batch: outputs[:, 0]})
    rank.gradients([np.arange(6), np.arange(6)], total=1)
    both = rank.named()["sequential/dense/kernel"]
    rank.gradients([np.arange(6)], total=1)
    assert not np.allclose(both, 2 * rank.named()["sequential/dense/kernel"])


def test_as_whole_models_do():
    """The same names, the same checkpoints; a whole model goes on from what stages have trained, and the same way."""
    def make():
        return keras.Sequential([layers.Input((6,)), layers.Dense(6, activation="tanh"), layers.LayerNormalization(),
                                 layers.Dense(2)])

    metrics = {"metrics": lambda outputs, batch: {"first": outputs[:, 0]}}
    whole, cut = Rank(Small(make, POINTS, **metrics), **ADAM), staged(make, POINTS, [2, 1], 2, task=metrics, **ADAM)
    cut.train(2, pieces(2))
    cut.pass_on(whole)
    assert whole.state() == cut.state()
    for rank in (whole, cut):
        rank.train(2, pieces(2))
    ours, theirs = (rank.adapter.export()["model"] for rank in (cut, whole))
    for name, blob in theirs.items():
        np.testing.assert_allclose(ours[name].to_numpy(), blob.to_numpy(), rtol=1e-4, atol=1e-5, err_msg=name)
    ours, theirs = (rank.adapter.evaluate([(POINTS[:7], 7)], False) for rank in (cut, whole))
    assert ours == pytest.approx(theirs, rel=1e-4) and set(ours) == {"loss", "first"}


def test_variables_lie_on_their_stage_and_no_bucket_spans_stages():
    adapter = staged(small, POINTS, [2, 2], 2, **RICH).adapter
    where = {name: variable.value.device[-5:] for name, variable in adapter._variables.weights.items()}
    assert {name: device for name, device in where.items() if "dense" in name} == {
        "sequential/dense/kernel": "CPU:0", "sequential/dense/bias": "CPU:0",
        "sequential/dense_1/kernel": "CPU:1", "sequential/dense_1/bias": "CPU:1"}
    for name, slot in adapter._slots.items():
        assert name == "iterations" or slot.value.device[-5:] == where[name.rpartition("/")[0]], name
    for name, average in adapter._averages.items():
        assert average.device[-5:] == where[name]
    names = list(adapter._variables.trainable)
    for bucket in adapter._plan:
        assert len({where[names[slot.index]] for slot in bucket.slots}) == 1
    assert len(adapter._plan) > 2


def test_ranks_with_few_samples_and_with_none_and_a_step_that_breaks_off():
    """Fewer samples than micro-batches, and none: the sum is that of all. A step that breaks off changes no bit, and is
    done again as if nothing had been."""
    def work(world):
        rank = staged(small, POINTS, [3, 1], 2, world=world, **RICH)
        share = [[np.arange(1)], []][world.rank]
        rank.gradients(share, total=1)
        few = rank.named()
        rank.adapter.apply(rank.step, 1.0)
        rank.step += 1
        before, asked = rank.state(), len(world.sums)
        world.breaks_at = asked + 2
        with pytest.raises(RoundBroken):
            rank.gradients(share, total=1)
        assert rank.state() == before
        world.breaks_at = None
        rank.train(1, pieces(2, np.arange(6) + 6 * world.rank))
        return few, rank.state()

    (few, one), (_, other) = together(work)
    assert one == other
    alone = staged(small, POINTS, [3, 1], 2, **RICH)
    alone.gradients([np.arange(1)], total=1)
    for name, gradient in alone.named().items():
        np.testing.assert_array_equal(gradient, few[name])


@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp16", marks=soak)])
def test_mixed_precision(precision):
    train = {"precision": precision, **({"loss_scale": 1024} if precision == "fp16" else {})}
    one, two = (staged(small, POINTS, split, 2, train=train) for split in ([4], [2, 2]))
    assert [r.loss for r in one.train(2, pieces(2))] == [r.loss for r in two.train(2, pieces(2))]
    assert one.state() == two.state()


class Told(keras.Layer):
    """Notes when a micro-batch goes through it, and when its gradient does; ``told`` by stage."""

    def __init__(self, told):
        super().__init__()
        self.tell = lambda text: told.append(text)  # a list would be copied

    def call(self, inputs):
        def note(kind):
            def noted(values, first):
                self.tell(f"{kind}{int(first) // 3}")
                return values
            return noted

        @tf.custom_gradient
        def through(values):
            first = tf.cast(tf.reduce_min(inputs[:, 0]), tf.float32)
            outputs = tf.ensure_shape(tf.numpy_function(note("F"), [values, first], tf.float32), values.shape)
            return outputs, lambda upstream: tf.ensure_shape(
                tf.numpy_function(note("B"), [upstream, first], tf.float32), values.shape)

        return through(inputs)


@pytest.mark.parametrize("name", ["1f1b", "gpipe"])
def test_each_stage_keeps_to_its_schedule(name):
    """So with 1f1b it has the activations of few micro-batches at a time."""
    told = [[], [], []]
    numbers = np.repeat(np.arange(SAMPLES, dtype=np.float32)[:, None], 6, 1)
    rank = staged(lambda: keras.Sequential([
        layers.Input((6,)), layers.Dense(6, use_bias=False, kernel_initializer="identity"), *map(Told, told),
        layers.Dense(1)]), numbers, [2, 1, 2], hybrid={"schedule": name})
    for notes in told:
        notes.clear()
    rank.gradients(pieces(4))
    assert told == [[str(one) for one in schedule.passes(name, stage, 3, 4)] for stage in range(3)]


# What cannot be cut ------------------------------------------------------------------------------------
class Chained(keras.Model):
    def __init__(self, twice=False):
        super().__init__()
        self.first, self.second, self.drop, self.twice = layers.Dense(6), layers.Dense(6), layers.Dropout(0.5), twice

    def call(self, inputs):
        values = self.drop(self.second(self.first(inputs)))
        return values + inputs if self.twice else values


def test_a_subclassed_model_whose_layers_are_a_chain():
    def losses(split):
        return [result.loss for result in staged(Chained, POINTS, split, 2).train(2, pieces(2))]

    assert losses([3]) == losses([1, 2])


def test_a_subclassed_model_that_does_something_else_is_refused():
    with pytest.raises(UserCodeError, match="cannot be cut .* dense.* do not give what it gives.* functional model"):
        staged(lambda: Chained(twice=True), POINTS, [1, 2])


def test_what_changes_a_variable_must_lie_in_one_stage():
    def make():
        inputs, normal = layers.Input((6,)), layers.BatchNormalization()
        return keras.Model(inputs, layers.Dense(2)(normal(layers.Dense(6)(normal(inputs)))))

    assert staged(make, POINTS, [3, 1], 2).gradients(pieces(2)).loss
    with pytest.raises(UserCodeError, match="batch_normalization/moving_mean.* stages 0 and 1"):
        staged(make, POINTS, [2, 2], 2)


def test_stages_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match=r"\[3, 3\], 6 layers in 2 stages, but the model has 9 layers .1: "):
        staged(everything, BOTH, [3, 3])
    with pytest.raises(UsageError, match="must be settled .*hvtrain plan"):
        Rank(Small(everything, BOTH), hybrid={"stages": 2})
    with pytest.raises(UsageError, match="hybrid.devices has 'tpu:0'"):
        staged(everything, BOTH, [4, 5], hybrid={"devices": ["tpu:0", "cpu"]})
    with pytest.raises(UsageError, match="GPU 7, but TensorFlow sees 0"):
        staged(everything, BOTH, [4, 5], hybrid={"devices": ["cuda:7", "cpu"]})
