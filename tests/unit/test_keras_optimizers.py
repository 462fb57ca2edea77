"""Every optimizer of Keras: its steps are its own, its state comes back under stable names; what cannot be right is refused."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, optimizers

from hvtrain.adapters.keras.optimizers import Rate
from hvtrain.config import OptimConfig
from hvtrain.errors import UsageError, UserCodeError
from tests.support.keras_small import SAMPLES, Rank, Small, plain

POINTS = np.random.default_rng(5).normal(size=(SAMPLES, 6)).astype(np.float32)
EVERY = {
    "sgd": lambda: optimizers.SGD(0.05), "momentum": lambda: optimizers.SGD(0.05, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda: optimizers.SGD(0.05, momentum=0.9, nesterov=True), "adam": lambda: optimizers.Adam(0.05, amsgrad=True),
    "adamw": lambda: optimizers.AdamW(0.05), "rmsprop": lambda: optimizers.RMSprop(0.05, momentum=0.5, centered=True),
    "adagrad": lambda: optimizers.Adagrad(0.05), "adadelta": lambda: optimizers.Adadelta(0.5),
    "adamax": lambda: optimizers.Adamax(0.05), "nadam": lambda: optimizers.Nadam(0.05), "ftrl": lambda: optimizers.Ftrl(0.05),
    "lion": lambda: optimizers.Lion(0.01), "lamb": lambda: optimizers.Lamb(0.05), "adafactor": lambda: optimizers.Adafactor(0.05),
    **({"muon": lambda: optimizers.Muon(0.05)} if hasattr(optimizers, "Muon") else {}),
    "clipnorm": lambda: optimizers.SGD(0.05, clipnorm=0.1), "global clip": lambda: optimizers.Adam(0.05, global_clipnorm=0.1),
    "accumulating": lambda: optimizers.Adam(0.05, gradient_accumulation_steps=2),
    "schedule": lambda: optimizers.SGD(optimizers.schedules.ExponentialDecay(0.1, 1, 0.5), momentum=0.9),
}


def model():
    return keras.Sequential([layers.Input((6,)), layers.Dense(4, activation="tanh"), layers.Dense(2)])


def rank(optimizer=None, **sections):
    task = Small(model, POINTS, optimizer=lambda groups: optimizer() if optimizer is not None else None)
    return Rank(task, **{"optim": {"lr": 0.05}, **sections})


SIMPLER = ("sgd", "nesterov", "adagrad", "adadelta", "adamax", "ftrl", "lion", "clipnorm")
"""Whose state is of the same kind as another's here."""


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.soak] if name in SIMPLER else []) for name in EVERY])
def test_its_steps_are_its_own_and_its_state_comes_back(name):
    mine, weights, optimizer = rank(EVERY[name]), model(), EVERY[name]()
    weights.set_weights(mine.adapter.model.get_weights())
    for step in range(3):
        _, gradients = plain(mine, np.arange(SAMPLES), lambda model, batch: model(batch))
        optimizer.apply([tf.constant(part) for part in gradients.values()], weights.trainable_variables)
        if step == 2:
            groups, scalars = mine.adapter.export(), mine.adapter.scalars()
        mine.train(1)
    for got, wanted in zip(mine.adapter.model.get_weights(), weights.get_weights()):
        np.testing.assert_allclose(got, wanted, atol=2e-5)
    after = mine.state()
    mine.adapter.restore(groups, scalars)
    mine.step = 2
    mine.train(1)
    assert mine.state() == after, "a part of its state is not among what is exported"
    names, variables = set(groups["optimizer"]), set(groups["model"])
    alone = {slot for slot in names if slot.rpartition("/")[0] not in variables}
    assert {"iterations"} <= alone <= {"iterations", "u_product"}, "a name that says nothing, or depends on what was built before"


def test_slots_are_named_after_their_variable():
    assert {"sequential/dense/kernel/r", "sequential/dense/kernel/c", "sequential/dense/kernel/velocity"} <= set(
        rank(EVERY["adafactor"]).adapter.export()["optimizer"])


def test_a_rate_of_its_own_is_followed_and_another_schedule_refused():
    own = rank(EVERY["schedule"])
    rates = []
    for _ in range(3):
        own.train(1)
        rates.append(own.metrics["lr"])
    assert rates == pytest.approx([0.1, 0.05, 0.025])
    with pytest.raises(UsageError, match="schedule of its own, so optim.schedule: cosine would do nothing"):
        rank(EVERY["schedule"], optim={"lr": 0.05, "schedule": {"name": "cosine"}})
    with pytest.raises(UsageError, match="schedule of its own, which elastic.lr_scaling cannot scale"):
        rank(EVERY["schedule"], elastic={"on_resize": "keep_local_batch", "lr_scaling": "linear"})


def test_who_sets_the_rate_sets_its_base():
    optimizer = optimizers.SGD(0.5)
    rate = Rate(optimizer, OptimConfig())
    assert rate.set(0.5) == 0.25 and rate.set(1.0) == 0.5
    optimizer.learning_rate = 0.125
    assert rate.set(0.5) == 0.0625 and rate.base == 0.125


@pytest.mark.parametrize("make, message", [
    (lambda: optimizers.SGD(0.1, use_ema=True), "use_ema.*set train.ema"),
    (lambda: optimizers.SGD(0.1, loss_scale_factor=128.0), "loss_scale_factor.*train.precision=fp16"),
    (lambda: optimizers.LossScaleOptimizer(optimizers.SGD(0.1)), "LossScaleOptimizer.*train.precision=fp16.*inner optimizer"),
    *([(lambda: optimizers.MultiOptimizer(lambda variable: optimizers.SGD(0.1)), "MultiOptimizer.*no learning rate")]
      if hasattr(optimizers, "MultiOptimizer") else []),
])
def test_what_would_be_wrong_or_idle_is_refused(make, message):
    with pytest.raises(UsageError, match=message):
        rank(make)


def test_a_loss_scaling_wrapper_is_taken_off_where_the_loss_is_scaled():
    wrapped = rank(lambda: optimizers.LossScaleOptimizer(optimizers.Adam(0.05)), train={"precision": "fp16"})
    bare = rank(lambda: optimizers.Adam(0.05), train={"precision": "fp16"})
    for each in (wrapped, bare):
        each.train(2)
    assert type(wrapped.adapter.optimizer) is optimizers.Adam and wrapped.state() == bare.state()


def test_no_optimizer_and_idle_settings():
    with pytest.raises(UserCodeError, match="gave a str; it must give a keras.optimizers.Optimizer"):
        rank(lambda: "adam")
    with pytest.raises(UsageError, match="brings its own optimizer, so optim.name would do nothing"):
        rank(EVERY["adam"], optim={"name": "sgd"})
    with pytest.raises(UsageError, match="betas, which keras.optimizers.Adam does not take. It takes: .*beta_1"):
        rank(optim={"name": "adam", "args": {"betas": [0.9, 0.9]}})


def test_the_average_of_the_weights_is_kept_in_their_own_precision():
    def double():
        return keras.Sequential([layers.Input((6,)), layers.Dense(2, dtype="float64")])

    each = Rank(Small(double, POINTS), train={"ema": 0.5})
    start = each.adapter.model.get_weights()[0]
    each.train(1)
    average, weight = (each.adapter.export()[group]["sequential/dense/kernel"].to_numpy() for group in ("ema", "model"))
    assert average.dtype == np.float64
    np.testing.assert_allclose(average, start + 0.9 * (weight - start), rtol=1e-7)
