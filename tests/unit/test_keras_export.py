"""Whole Keras models out of checkpoints: what Keras and TensorFlow load computes what the checkpoint's weights do."""

from __future__ import annotations

import json
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner

from hvtrain import Job
from hvtrain.checkpoint import Snapshot, Store, write
from hvtrain.cli.ckpt import ckpt
from hvtrain.config import dump
from hvtrain.errors import CheckpointMissing, UsageError, UserCodeError
from tests.support.keras_small import Rank, Small

POINTS = np.random.default_rng(5).normal(size=(12, 6)).astype(np.float32)
CODE = """
import keras, numpy as np
from keras import layers
from hvtrain import ArraySource, Task

def functional():
    inputs = layers.Input((6,))
    hidden = layers.BatchNormalization()(layers.Dense(4, activation="tanh")(inputs))
    return keras.Model(inputs, layers.Dense(2)(layers.Dropout(0.5)(hidden)))

class Unsaveable(keras.Model):
    def __init__(self, function):
        super().__init__()
        self.function, self.layer = function, layers.Dense(2)
    def call(self, inputs):
        return self.layer(self.function(inputs))

class Its(Task):
    def __init__(self, kind="functional"):
        self.kind = kind
    def model(self):
        if self.kind == "custom":
            return Unsaveable(lambda x: x)
        return functional() if self.kind == "functional" else keras.Sequential([layers.Dense(3), layers.Dense(2)])
    def data(self, split):
        return ArraySource(np.zeros((5, 6), "f4"))
    def loss(self, outputs, batch):
        raise AssertionError("nothing is trained here")
"""


def checkpoint(directory, kind="functional", code=True, framework="keras"):
    """A run with one checkpoint, whose model has trained a little, and that model's predictions (and the average's)."""
    module = f"exported_{directory.name}"
    (directory / "code").mkdir(parents=True)
    (directory / "code" / f"{module}.py").write_text(CODE)
    settings = {"framework": framework, "task": {"target": f"{module}:Its", "args": {"kind": kind}},
                "run": {"dir": str(directory / "run")}, "train": {"ema": 0.5}}
    sys.path.insert(0, str(directory / "code"))
    task = __import__(module).Its(kind)
    sys.path.pop(0)
    rank = Rank(Small(task.model, POINTS), train={"ema": 0.5}, optim={"lr": 0.1})
    rank.train(3)
    (directory / "run").mkdir()
    (directory / "run" / "config.yaml").write_text(dump(Job.model_validate(settings)))
    (directory / "run" / "env.json").write_text(json.dumps({"code": str(directory / "code")} if code else {}))
    write(Store(directory / "run" / "checkpoints"), Snapshot(
        step=3, epoch=0, groups=rank.adapter.export(), metrics={}, state={"cursor": 0}, world_size=1, framework=framework))
    trained = rank.adapter.model(POINTS).numpy()
    with rank.adapter._averaged(True):
        return directory / "run", trained, rank.adapter.model(POINTS).numpy()


def export(*arguments):
    result = CliRunner().invoke(ckpt, ["export", *map(str, arguments)], catch_exceptions=True)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("kind", ["functional", "sequential"])
def test_what_is_loaded_predicts_what_the_checkpoint_does(tmp_path, kind):
    """Sequential without an input is built by a call on the task's data first."""
    run, trained, averaged = checkpoint(tmp_path / kind, kind)
    assert "model.keras: the model of step-00000003" in export(run, "--to", tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(POINTS).numpy(), trained)
    export(run, "--to", tmp_path / "model.keras", "--weights", "ema", "--force")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "model.keras")(POINTS).numpy(), averaged)
    export(run, "--to", tmp_path / "saved")
    saved = tf.saved_model.load(str(tmp_path / "saved"))
    np.testing.assert_allclose(saved.serve(POINTS).numpy(), trained, rtol=1e-5)
    export(run, "--to", tmp_path / "saved", "--weights", "ema", "--force")
    saved = tf.saved_model.load(str(tmp_path / "saved"))
    np.testing.assert_allclose(saved.serve(POINTS).numpy(), averaged, rtol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([kind, "model.keras", "saved"])


def test_what_cannot_be_exported_is_explained(tmp_path):
    run, _, _ = checkpoint(tmp_path / "a")
    (tmp_path / "full").mkdir()
    for arguments, error, message in [
            (["--to", tmp_path / "full"], UsageError, "exists already.*--force"),
            (["--to", tmp_path / "full", "--force"], UsageError, "is no SavedModel"),
            (["--to", tmp_path / "x.h5"], UsageError, "ends in .safetensors or .keras, or a directory")]:
        with pytest.raises(error, match=message):
            export(run, *arguments)
    (run / "env.json").write_text("{}")
    with pytest.raises(UsageError, match="says nothing about. Say where it is: --code DIRECTORY"):
        export(run, "--to", tmp_path / "x.keras")
    export(run, "--to", tmp_path / "x.keras", "--code", tmp_path / "a" / "code")
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("framework: keras", "framework: torch"))
    with pytest.raises(UsageError, match="the run's framework is torch"):
        export(run, "--to", tmp_path / "y.keras")
    config.unlink()
    with pytest.raises(UsageError, match="the run's config.yaml"):
        export(run / "checkpoints", "--to", tmp_path / "y.keras")
    with pytest.raises(CheckpointMissing):
        export(tmp_path / "nowhere", "--to", tmp_path / "y.keras")


def test_a_model_that_keras_cannot_save_is_said_and_leaves_nothing(tmp_path):
    run, _, _ = checkpoint(tmp_path / "b", "custom")
    with pytest.raises(UserCodeError, match="Keras cannot save the model as a .keras file.*safetensors"):
        export(run, "--to", tmp_path / "x.keras")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
