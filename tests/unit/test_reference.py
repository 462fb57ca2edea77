"""The NumPy reference beside what all adapters share: its optimizers, its models' mistakes, its place in a job file."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from hvtrain import Job, Task
from hvtrain.adapters.reference import ReferenceAdapter
from hvtrain.adapters.reference_optimizer import Optimizer
from hvtrain.config import GroupConfig, OptimConfig
from hvtrain.control.warmstart import guess_framework
from hvtrain.engine.world import SoloWorld
from hvtrain.errors import UsageError, UserCodeError


class Line:
    """y = a x + b; ``result`` replaces what it gives."""

    def __init__(self, result=None, **parameters):
        self.parameters = parameters or {"a": np.zeros(3, np.float32), "b": np.zeros((), np.float32)}
        self._result = result

    def __call__(self, inputs):
        return inputs @ self.parameters["a"] + self.parameters["b"]

    def losses_and_gradients(self, batch, random):
        errors = self(batch[0]) - batch[1]
        gradients = {"a": 2 * errors @ batch[0], "b": 2 * errors.sum()}
        return self._result or (errors**2, gradients)


class Fit(Task):
    def __init__(self, model): self._model = model
    def model(self): return self._model
    def loss(self, outputs, batch): return (outputs - batch[1]) ** 2


def adapter(model, **sections):
    job = Job.model_validate({
        "framework": "numpy", "task": {"target": "t:T"}, "optim": {"name": "sgd", "lr": 0.1}, **sections,
        "comm": {"shared_memory": False, **sections.get("comm", {})}})
    made = ReferenceAdapter(job, Fit(model), threads=1)
    made.build()
    made.join(SoloWorld())
    made.seed(0)
    return made


def data(count=8):
    points = np.random.default_rng(5).standard_normal((count, 3)).astype(np.float32)
    return points, points @ np.float32([1, -2, 3]) + 4


@pytest.mark.parametrize("config", [
    {"name": "sgd"}, {"name": "sgd", "momentum": 0.9, "weight_decay": 0.1}, {"name": "adam", "weight_decay": 0.1},
    {"name": "adamw"}, {"name": "adamw", "args": {"betas": [0.8, 0.9], "eps": 1e-3}, "weight_decay": 0.0}])
def test_optimizers_are_pytorchs(config):
    config = OptimConfig(lr=0.05, **config)
    random = np.random.default_rng(2)
    mine = {name: random.standard_normal(shape).astype(np.float32) for name, shape in (("a", (4, 3)), ("b", ()))}
    theirs = [torch.from_numpy(array.copy()).requires_grad_() for array in mine.values()]
    settings = {key: value for key in ("weight_decay", "momentum") if (value := getattr(config, key)) is not None}
    cls = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.name]
    reference, other = Optimizer(mine, config), cls(theirs, lr=config.lr, **settings, **config.args)
    for number in range(6):
        gradients = {name: random.standard_normal(array.shape).astype(np.float32) for name, array in mine.items()}
        for tensor, gradient in zip(theirs, gradients.values()):
            tensor.grad = torch.from_numpy(np.array(gradient))
        other.param_groups[0]["lr"] = 0.05 * (number + 1)
        reference.step(gradients, number, number + 1.0)
        other.step()
        for name, tensor in zip(mine, theirs):
            np.testing.assert_allclose(mine[name], tensor.detach().numpy(), rtol=0, atol=2e-6, err_msg=name)


def test_the_first_matching_group_wins():
    arrays = {name: np.zeros(2, np.float32) for name in ("body/kernel", "body/bias", "head/kernel")}
    optimizer = Optimizer(arrays, OptimConfig(name="sgd", lr=1.0, groups=[
        GroupConfig(params="*/bias", freeze=True), GroupConfig(params="body/*", lr=0.5, momentum=0.5)]))
    assert set(optimizer.trainable) == {"body/kernel", "head/kernel"}
    assert set(optimizer.state) == {"body/kernel/momentum"}
    for number in range(2):
        optimizer.step({name: np.ones(2, np.float32) for name in arrays}, number, 1.0)
    assert {name: array[0] for name, array in arrays.items()} == {
        "body/kernel": -0.5 - 0.75, "body/bias": 0.0, "head/kernel": -2.0}


def test_it_fits_a_line():
    made, batch = adapter(Line(), optim={"name": "adam", "lr": 0.3}), data()
    losses = []
    for step in range(150):
        made.seed(step)
        losses.append(made.gradients([batch], [8], 8, (0.0,)).loss)
        made.apply(step, 1.0)
    assert losses[-1] < 1e-3 < losses[0]
    np.testing.assert_allclose(made.model.parameters["a"], [1, -2, 3], atol=0.1)
    assert made.evaluate([(data(), 8)], False)["loss"] < 1e-3


def test_double_precision_stays():
    model = Line(a=np.zeros(3), b=np.zeros(()))
    made = adapter(model)
    made.gradients([data()], [8], 8, (0.0,))
    made.apply(0, 1.0)
    assert model.parameters["a"].dtype == np.float64
    expected = -0.1 * np.float64(Line(a=np.zeros(3), b=np.zeros(())).losses_and_gradients(data(), None)[1]["a"]) / 8
    np.testing.assert_allclose(model.parameters["a"], expected, rtol=1e-12)


def broken_view():
    return np.zeros((3, 2), np.float32).T


@pytest.mark.parametrize("model, words", [
    (object(), "without parameters, losses_and_gradients, __call__"),
    (Line(a=[0.0]), "'a' of the model is a list; it must be a NumPy array of float32 or float64"),
    (Line(a=np.zeros(2, np.int64)), "int64 array"), (Line(a=broken_view()), "C-contiguous and writable")])
def test_a_model_that_is_none_is_refused(model, words):
    with pytest.raises(UserCodeError, match=words):
        adapter(model)


@pytest.mark.parametrize("result, words", [
    ((np.zeros(()), {}), r"losses of shape \(\) for a batch of 8 samples"), ((np.zeros(7), {}), r"\(8,\)"),
    ((np.zeros(8), {"a": np.zeros(3)}), "no gradient for 'b'; it gave a. .*freeze: true"),
    ((np.zeros(8), {"a": np.zeros(1), "b": 0.0}), r"shape \(1,\) for 'a', whose shape is \(3,\)")])
def test_losses_and_gradients_that_do_not_fit_are_refused(result, words):
    with pytest.raises(UserCodeError, match=words):
        adapter(Line(result)).gradients([data()], [8], 8, (0.0,))


@pytest.mark.parametrize("config, words", [
    ({"args": {"nesterov": True}}, "optim.args has nesterov, which sgd of framework: numpy does not take"),
    ({"groups": [{"params": "c*", "lr": 1.0}]}, r"optim.groups\[0\].params is 'c\*', which matches no para.*a, b")])
def test_optimizer_settings_that_would_do_nothing_are_refused(config, words):
    with pytest.raises(UsageError, match=words):
        adapter(Line(), optim={"name": "sgd", **config})


def test_nothing_to_train_is_refused():
    with pytest.raises(UserCodeError, match="no trainable parameter"):
        adapter(Line(), optim={"name": "sgd", "groups": [{"params": "*", "freeze": True}]})


def test_a_codec_needs_float32():
    with pytest.raises(UsageError, match="'a' is float64"):
        adapter(Line(a=np.zeros(3), b=np.zeros(())), comm={"codec": "fp16"})


@pytest.mark.parametrize("sections, words", [
    ({"train": {"precision": "bf16"}}, "it has no bf16"), ({"optim": {"name": "rmsprop"}}, "not rmsprop"),
    ({"train": {"jit_compile": True}}, "only framework: keras")])
def test_what_the_reference_lacks_is_said_when_the_job_is_read(sections, words):
    with pytest.raises(ValidationError, match=words):
        Job.model_validate({"framework": "numpy", "task": {"target": "t:T"}, **sections})


@pytest.mark.parametrize("text, overrides, framework", [
    ("framework: numpy\n", (), "numpy"), ("task: {target: a:b}\n", (), "torch"), ("framework: 'keras'\n", (), "keras"),
    ("framework: keras\n", ("framework=numpy",), "numpy"), ("# framework: keras\n", (), "torch")])
def test_the_framework_is_guessed_before_the_job_is_read(tmp_path, text, overrides, framework):
    path = tmp_path / "job.yaml"
    path.write_text(text)
    assert guess_framework(str(path), overrides) == framework
