"""Where a job's values come from, and that a saved job is the same job."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from hvtrain.config import Duration, Every, GroupConfig, Job, OptimConfig, StepRange, Steps, TaskConfig, dump, load
from hvtrain.config.interpolation import escape, resolve
from hvtrain.errors import ConfigError

ISSUE = """
    version: 1
    framework: torch                       # torch | keras
    run: {dir: runs/mnist, seed: 0}        # the run's own directory
    task: {target: "task:mnist", args: {width: 32}}
    data: {global_batch: 256, micro_batch: 64, workers: 2, sampling: uniform}
    train: {epochs: 5, precision: fp32, grad_clip: 1.0, ema: 0.999}       # or steps: 2000
    optim: {name: adamw, lr: 1e-3, schedule: {name: cosine, warmup: 5%}}
    comm: {codec: none, bucket_mb: 16}
    elastic: {min_workers: 1, max_workers: 8, replace_timeout: 2s}
    checkpoint: {every: 200 steps, keep: 3, best: accuracy, resume: auto} # auto | never | PATH
    eval: {every: 1 epoch}
    log: {every: 10, sinks: [jsonl]}
    launch: {workers: 2, start: fork}
"""


@pytest.fixture
def file(tmp_path):
    def write(text: str, name: str = "digits.yaml") -> Path:
        path = tmp_path / name
        path.write_text(textwrap.dedent(text))
        return path
    return write


def test_the_documented_file(file):
    job = load(file(ISSUE), env={})
    assert job.optim.lr == 1e-3 and job.optim.schedule.warmup == Steps.parse("5%")
    assert job.checkpoint.every == Every.parse("200 steps") and job.elastic.replace_timeout == Duration(2.0)
    assert job.task.args == {"width": 32} and job.train.steps is None


def test_defaults(file):
    job = load(file("task: {target: 'task:x'}"), env={})
    assert job.train.epochs == 1 and job.train.steps is None
    assert job.run.dir == "runs/digits"
    assert job.optim.name == "adamw" and job.optim.schedule.warmup.resolve(100, 10) == 0
    assert job.checkpoint.every == Every(1, "epoch") and job.log.sinks == ["jsonl"]
    assert job == Job(task={"target": "task:x"}, run={"dir": "runs/digits"})


def test_run_dir_of_a_file_called_config_is_named_after_its_folder(file, tmp_path):
    job = load(file("task: {target: 'task:x'}", "config.yaml"), env={})
    assert job.run.dir == f"runs/{tmp_path.name}"


def test_empty_sections_are_as_good_as_none(file):
    assert load(file("task: {target: 'a:b'}\nelastic:\nrun:\n"), env={}).run.dir == "runs/digits"


def test_precedence(file):
    path = file("task: {target: 'a:b'}\noptim: {lr: 0.1}\nrun: {seed: 1}\ndata: {workers: 1}\n")
    env = {"HVTRAIN_OPTIM__LR": "0.2", "HVTRAIN_RUN__SEED": "2", "HVTRAIN_CACHE": "/x", "OTHER__THING": "1"}
    job = load(path, ["optim.lr=3e-1"], env)
    assert (job.optim.lr, job.run.seed, job.data.workers, job.data.prefetch) == (0.3, 2, 1, 2)


def test_env_is_the_process_environment_by_default(file, monkeypatch):
    monkeypatch.setenv("HVTRAIN_RUN__SEED", "17")
    path = file("task: {target: 'a:b'}")
    assert load(path).run.seed == 17
    assert load(path, env={}).run.seed == 0


def test_override_values_are_yaml(file):
    path = file("task: {target: 'a:b', args: {Width: 1, keep: 2}}\n"
                "optim: {groups: [{params: x}, {params: y}]}\n")
    job = load(
        path,
        ["log.sinks=[jsonl, tensorboard]", "task.args={deep: {a: 1e-3}}", "checkpoint.every=null",
         "optim.groups.1.lr=1e-4", "run.name=a=b", "train.early_stopping.metric=loss", "log.console=off"],
        {"HVTRAIN_TASK__ARGS__WIDTH": "64"},
    )
    assert job.log.sinks == ["jsonl", "tensorboard"] and job.checkpoint.every is None
    assert job.task.args == {"Width": 64, "keep": 2, "deep": {"a": 1e-3}}
    assert [group.lr for group in job.optim.groups] == [None, 1e-4]
    assert job.run.name == "a=b" and job.train.early_stopping.metric == "loss" and job.log.console == "off"


def test_steps_instead_of_epochs_from_the_command_line(file):
    path = file("task: {target: 'a:b'}\ntrain: {epochs: 3}\n")
    with pytest.raises(ConfigError, match="train.epochs=null"):
        load(path, ["train.steps=20"], {})
    assert load(path, ["train.steps=20", "train.epochs=null"], {}).train.steps == 20


def test_interpolation(file, monkeypatch):
    monkeypatch.setenv("ELSEWHERE", "/data")
    job = load(file("""
        task:
          target: "a:b"
          args: {seed: "${run.seed}", list: ["${data.global_batch}", 2], copy: "${.list}", plain: '\\${x}'}
        run: {dir: "${oc.env:ELSEWHERE}/s${run.seed}"}
        launch: {workers: "${elastic.min_workers}"}
    """), ["run.name=lr-${optim.lr}"], {})
    assert job.task.args == {"seed": 0, "list": [64, 2], "copy": [64, 2], "plain": "${x}"}
    assert job.run.dir == "/data/s0" and job.launch.workers == 1 and job.run.name == "lr-0.001"


@pytest.mark.parametrize("steps", ["10-20", "12", "7 - 9"])
def test_steps_to_trace_round_trip(file, steps):
    job = load(file("task: {target: 'a:b'}"), [f"log.timeline={steps}"], {})
    assert load(file(dump(job), "again.yaml"), env={}) == job and job.log.timeline == StepRange.parse(steps)
    assert Job.model_validate(job.model_dump(mode="json")) == job
    assert load(file("task: {target: 'a:b'}"), env={}).log.timeline is None


def test_round_trips(file):
    args = "task.args={a: '1e-3', b: 'off', c: .inf, d: '${run.dir}', e: '1:30', f: null}"
    job = load(file(ISSUE), [args], {})
    assert Job.model_validate(job.model_dump(mode="json")) == job
    assert Job.model_validate(json.loads(job.model_dump_json())) == job
    again = load(file(dump(job), "again.yaml"), env={})
    assert again == job and dump(again) == dump(job)
    assert job.task.args["d"] == "runs/mnist" and job.task.args["a"] == "1e-3"


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]))
    | st.text(st.sampled_from("${}\\:ax.-e1#'\" ,")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(_values)
@example({"\x85": "\u2028 a\x85\u2029b \ufeff"})
@example("a\n\n  b\r\tc \x00 ")
def test_any_argument_survives_dump_and_load(tmp_path_factory, value):
    job = Job(task={"target": "a:b", "args": {"value": value}})
    path = tmp_path_factory.mktemp("job") / "job.yaml"
    path.write_text(dump(job), encoding="utf-8")
    assert load(path, env={}) == job


@settings(max_examples=100, deadline=None)
@given(st.text(st.sampled_from("${}\\ab.")))
def test_escape(text):
    assert resolve({"a": escape(text)}, {})[0] == {"a": text}


def test_python_construction_is_checked_too():
    with pytest.raises(ValidationError, match="cannot be larger"):
        Job(task=TaskConfig(target="a:b"), data={"global_batch": 1, "micro_batch": 2})
    with pytest.raises(ValidationError):
        Job(task=TaskConfig(target="a:b")).run.seed = 3
    assert OptimConfig(groups=[GroupConfig(params="x.*", freeze=True)]).groups[0].freeze


@pytest.mark.parametrize("target", ["task:mnist", "a.b:C.d", "dir/task.py:f", "/abs/my task.py:f",
                                    "../t.py:f", "tâche:modèle"])
def test_targets(target):
    assert TaskConfig(target=target).target == target


@pytest.mark.parametrize("target", ["task", "task:", ":x", "a/b:c", "task:1x", "a..b:c", "t.py:", ""])
def test_bad_targets(target):
    with pytest.raises(ValidationError):
        TaskConfig(target=target)


def test_importing_the_package_is_light():
    heavy = ["omegaconf", "yaml", "numpy", "torch", "tensorflow", "horovod", "click"]
    code = f"import sys, hvtrain.config; print([m for m in {heavy} if m in sys.modules])"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "[]"
