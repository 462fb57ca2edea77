"""Scripts as jobs: what is read out of them, how their settings are layered, and how they are run."""

from __future__ import annotations

import sys

import pytest

from hvtrain.cli.run_source import Source
from hvtrain.config import Job, layers, loading
from hvtrain.control import script
from hvtrain.control.warmstart import guess_framework
from hvtrain.errors import ConfigError, UsageError

SCRIPT = """\
import os.path
from sklearn import datasets
import hvtrain
from .mine import thing
try:
    import pandas as pd
except ImportError:
    pd = None

def later():
    import tensorflow

hvtrain.torch.fit(later)
"""

SCRIPT_TASK = {"task": {"script": "train.py"}}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    return path


def test_imports_at_the_top_are_known_before_the_script_runs(path):
    assert script.imported(path) == ["os.path", "sklearn", "hvtrain", "pandas", "hvtrain.torch"]


@pytest.mark.parametrize(("text", "expected"), [
    ("import keras", "keras"), ("from keras import layers", "keras"), ("import tensorflow as tf", "keras"),
    ("import hvtrain.keras", "keras"), ("from hvtrain import keras", "keras"),
    ("import hvtrain\nhvtrain.keras.fit(1)", "keras"),
    ("import torch", "torch"), ("x = 1", "torch"), ("this is no Python", "torch")])
def test_the_framework_is_guessed_by_the_imports(tmp_path, text, expected):
    path = tmp_path / "train.py"
    path.write_text(text)
    assert script.framework(path) == guess_framework(str(path), ()) == expected


def test_who_names_the_framework_is_believed(path):
    assert guess_framework(str(path), ("framework=keras",)) == "keras"
    assert loading.load_script(path, "torch", overrides=["framework=keras"])[0].framework == "keras"


def test_modules_beside_the_script_are_left_to_the_script(tmp_path, monkeypatch):
    (tmp_path / "neighbour_module.py").write_text("raise AssertionError")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not script.installed("neighbour_module", tmp_path)
    assert script.installed("json", tmp_path) and script.installed("sys", tmp_path)
    assert not script.installed("there_is_no_such_module", tmp_path)


def test_a_script_is_run_as_python_runs_it(tmp_path, monkeypatch, capsys):
    (tmp_path / "beside_the_script.py").write_text("VALUE = 7")
    (tmp_path / "train.py").write_text(
        "import sys, beside_the_script\nprint(__name__, sys.argv, beside_the_script.VALUE)\nsys.exit(0)")
    monkeypatch.setattr(sys, "argv", ["other", "arguments"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    script.run(tmp_path / "train.py")
    assert capsys.readouterr().out == f"__main__ ['{tmp_path / 'train.py'}'] 7\n"
    (tmp_path / "train.py").write_text("raise SystemExit('no data')")
    with pytest.raises(SystemExit, match="no data"):
        script.run(tmp_path / "train.py")


# Settings ----------------------------------------------------------------------------------------------------
def test_the_command_goes_before_the_script_and_that_before_the_file(tmp_path, path):
    config = tmp_path / "job.yaml"
    config.write_text("train: {epochs: 3, grad_clip: 1.0}\ndata: {global_batch: 8}\nrun: {seed: 5}\n"
                      "task: {target: 'a:b'}\n")
    job, given = loading.load_script(path, "torch", config, ["train.epochs=2"], {"HVTRAIN_LOG__EVERY": "4"})
    assert job.task.script == str(path) and job.task.target is None and job.run.dir == "runs/train"
    assert given.over == {"train": {"epochs": 2}, "log": {"every": 4}}
    settled = layers.settle([{"data": {"global_batch": 32, "eval_batch": 9}}, given.all,
                             {"train": {"epochs": 10}, "data": {"global_batch": 16}}, given.over],
                            {"task": {"script": "train.py"}}, "test")
    assert (settled.train.epochs, settled.train.grad_clip) == (2, 1.0)
    assert (settled.data.global_batch, settled.data.eval_batch, settled.log.every, settled.run.seed) == (16, 9, 4, 5)


def test_a_length_in_steps_takes_the_place_of_one_in_epochs():
    job = layers.settle([{"train": {"epochs": 1, "grad_clip": 2.0}}, {"train": {"steps": 40}}], SCRIPT_TASK, "test")
    assert (job.train.epochs, job.train.steps, job.train.grad_clip) == (None, 40, 2.0)


def test_a_part_of_a_list_that_is_set_over_comes_with_the_whole_list(path):
    overrides = ["optim.groups=[{params: a}, {params: b}]", "optim.groups.1.freeze=true"]
    _, given = loading.load_script(path, "torch", None, overrides, {})
    assert given.over == {"optim": {"groups": [{"params": "a"}, {"params": "b", "freeze": True}]}}


def test_mistakes_in_what_a_script_says_are_told_together():
    with pytest.raises(ConfigError) as caught:
        layers.settle([{"train": {"epoch": 1}, "data": {"global_batch": "many"}}], SCRIPT_TASK, "the script")
    assert {problem.key for problem in caught.value.problems} == {"train.epoch", "data.global_batch"}
    assert "did you mean epochs" in str(caught.value) and "the script: " in str(caught.value)


def test_what_a_job_was_told_is_known_without_its_defaults():
    job = Job.model_validate({"task": {"target": "a:b"}, "train": {"steps": 3}, "checkpoint": {"every": "2 steps"}})
    assert layers.explicit(job) == {"train": {"steps": 3}, "checkpoint": {"every": "2 steps"}}


@pytest.mark.parametrize(("task", "words"), [
    ({}, "required, but missing"), ({"target": "a:b", "script": "t.py"}, "exclude each other"),
    ({"script": "t.ipynb"}, "expected a Python script"), ({"script": "t.py", "args": {"width": 2}}, "takes no args")])
def test_a_job_has_a_target_or_a_script(task, words):
    with pytest.raises(ConfigError, match=words):
        layers.settle([], {"task": task}, "test")


@pytest.mark.parametrize(("job", "settings", "words"), [
    ("deep/train.ipynb", None, "jupyter nbconvert --to script deep/train.ipynb; then hvtrain run deep/train.py"),
    ("job.yaml", "other.yaml", "hvtrain run job.yaml")])
def test_what_cannot_be_run_is_refused_with_what_to_type(job, settings, words):
    with pytest.raises(UsageError, match=words):
        Source(job, settings).check()
