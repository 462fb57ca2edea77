"""A user's mistakes: all at once, each with its place, its key, and what to type instead."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from hvtrain.config import load
from hvtrain.errors import ConfigError, ExitCode

FIVE = Path(__file__).parent / "jobs" / "five_mistakes.yaml"


@pytest.fixture
def problems(tmp_path):
    def found(text, overrides=(), env=None):
        path = tmp_path / "job.yaml"
        path.write_text(textwrap.dedent(text))
        with pytest.raises(ConfigError) as error:
            load(path, overrides, env or {})
        return error.value.problems
    return found


def test_five_mistakes_five_messages_with_their_lines():
    with pytest.raises(ConfigError) as error:
        load(FIVE, env={})
    assert error.value.exit_code is ExitCode.USAGE
    assert [(p.line, p.key) for p in error.value.problems] == [
        (8, "data.micro_batch"), (10, "train.epoch"), (13, "optim.lr"), (15, "optim.schedule.name"),
        (18, "checkpoint.every")]
    message = str(error.value)
    assert message.startswith("5 mistakes in the job:\n")
    assert len(message.splitlines()) == 6 and message.count(f"{FIVE}:") == 5
    for part in ["did you mean epochs?", "did you mean cosine?", "the text 'fast'", "'200 stepz'", "(256)"]:
        assert part in message


@pytest.mark.parametrize("body, key, line, words", [
    ("train:\n  epochs: yes", "train.epochs", 3, "a whole number, got true"),
    ("train:\n  epochs: 2.5", "train.epochs", 3, "got 2.5"),
    ("train:\n  epochs: 0", "train.epochs", 3, "must be above 0, got 0"),
    ("train: {ema: 1}", "train.ema", 2, "must be below 1"),
    ("train: {early_stopping: {patience: 2}}", "train.early_stopping.metric", 2, "but missing; The eval"),
    ("train: {precision: half}", "train.precision", 2, "one of fp32, bf16, fp16"),
    ("train: {precision: fp16, loss_scale: 0}", "train.loss_scale", 2, "must be above 0"),
    ("comm: {codec: fp8}", "comm.codec", 2, "one of none, fp16, bf16, int8"),
    ("train: {early_stopping: accuracy}", "train.early_stopping", 2, "keys with values, got the text 'acc"),
    ("optim: {lr: '1e-3'}", "optim.lr", 2, "remove the quotes"),
    ("optim: {lr: .inf}", "optim.lr", 2, "a finite number"),
    ("optim: {nmae: sgd}", "optim.nmae", 2, "did you mean name?"),
    ("optim:\n  groups:\n    - params: x\n    - lr: 1", "optim.groups.1.params", 5, "required"),
    ("optim:\n  groups:\n    - params: x\n      frozen: true", "optim.groups.0.frozen", 5, "mean freeze?"),
    ("run: {name: 3}", "run.name", 2, "put it in quotes"),
    ("run: {dir: ''}", "run.dir", 2, "must not be empty"),
    ("lr: 3", "lr", 2, "did you mean optim.lr?"),
    ("metric: loss", "metric", 2, "did you mean train.early_stopping.metric?"),
    ("every: 3", "every", 2, "did you mean one of optim.schedule.every, checkpoint.every"),
    ("data: {epochs: 3}", "data.epochs", 2, "did you mean train.epochs?"),
    ("data: {batch_size: 3}", "data.batch_size", 2, "did you mean global_batch?"),
    ("data: {zzz: 3}", "data.zzz", 2, "known here: global_batch, micro_batch"),
    ("zzz:", "zzz", 2, "known here: version, framework"),
    ("optmi: {lr: 3}", "optmi", 2, "did you mean optim?"),
    ("log: {sinks: [jsonl, tensorbord]}", "log.sinks.1", 2, "did you mean tensorboard?"),
    ("log: {sinks: [jsonl, jsonl]}", "log.sinks", 2, "named more often"),
    ("log: {sinks: jsonl}", "log.sinks", 2, "a list, got the text 'jsonl'"),
    ("log: {timeline: 20-10}", "log.timeline", 2, 'such as "10-20", got \'20-10\' (10 comes before 20)'),
    ("log: {timeline: 0}", "log.timeline", 2, "got 0 (the first step is 1)"),
    ("launch: {threads: many}", "launch.threads", 2, "or auto; got 'many'"),
    ("launch: {threads: 0}", "launch.threads", 2, "above 0"),
    ("comm: {timeout: 0s}", "comm.timeout", 2, "a time above 0"),
    ("eval: {every: 10 minutes}", "eval.every", 2, "only checkpoint.every may be a time"),
    ("checkpoint: {keep_every: 1h}", "checkpoint.keep_every", 2, "only checkpoint.every may be a time"),
    ("version: 2", "version", 2, "expected 1, got 2"),
    ("framework: jax", "framework", 2, "one of torch, keras, numpy"),
    ("framework:", "framework", 2, "one of torch, keras, numpy; got nothing (null)"),
    ("optim: 3", "optim", 2, "keys with values, got 3"),
    ("run: {dir: '${nope}'}", "run.dir", 2, "Interpolation key 'nope' not found"),
    ("run: {dir: '${'}", "run.dir", 2, "not a valid reference"),
    ("run: {dir: '${oc.env:SURELY_NOT_SET}'}", "run.dir", 2, "SURELY_NOT_SET"),
    ("run: {seed: 1}\nrun: {seed: 2}", "run", 3, "given twice; first on line 2"),
])
def test_single_mistakes(problems, body, key, line, words):
    (problem,) = problems("task: {target: 'a:b'}\n" + body)
    assert (problem.key, problem.line) == (key, line)
    assert words in problem.message


@pytest.mark.parametrize("body, key, line", [
    ("train: {epochs: 1, steps: 2}", "train.steps", 2),
    ("train:\n  loss_scale: 1024", "train.loss_scale", 3),
    ("train:\n  precision: bf16\n  loss_scale: 1024", "train.loss_scale", 4),
    ("train:\n  precision: fp16\n  loss_scale: 1000", "train.loss_scale", 4),
    ("data: {micro_batch: 65}", "data.micro_batch", 2),
    ("data: {sampling: balanced, shuffle: false}", "data.shuffle", 2),
    ("elastic:\n  min_workers: 3\n  max_workers: 2", "elastic.min_workers", 3),
    ("elastic: {min_workers: 3}\nlaunch:\n  workers: 2", "launch.workers", 4),
    ("elastic: {max_workers: 1}\nlaunch:\n  workers: 2", "launch.workers", 4),
    ("optim:\n  schedule:\n    name: step", "optim.schedule.every", 4),
    ("optim: {schedule: {name: cosine, every: 1 epoch}}", "optim.schedule.every", 2),
    ("optim: {schedule: {factor: 0.5}}", "optim.schedule.factor", 2),
    ("optim: {schedule: {final: 0.5}}", "optim.schedule.final", 2),
    ("optim: {momentum: 0.9}", "optim.momentum", 2),
    ("optim:\n  name: adam\n  groups:\n  - params: x\n    momentum: 0.9", "optim.groups.0.momentum", 6),
    ("optim: {args: {lr: 1}}", "optim.args.lr", 2),
    ("optim: {groups: [{params: x, freeze: true, lr: 1}]}", "optim.groups.0.lr", 2),
    ("eval: {every: null}\ntrain:\n  early_stopping: {metric: loss}", "train.early_stopping", 4),
    ("eval: {every: null}\ncheckpoint:\n  best: loss", "checkpoint.best", 4),
])
def test_impossible_combinations(problems, body, key, line):
    (problem,) = problems("task: {target: 'a:b'}\n" + body)
    assert (problem.key, problem.line) == (key, line)


def test_possible_combinations(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("task: {target: 'a:b'}")
    load(path, ["optim.name=sgd", "optim.momentum=0.9", "launch.workers=100", "data.global_batch=3"], {})
    load(path, ["train.precision=fp16", "train.loss_scale=1024", "comm.codec=int8", "comm.shared_memory=false"], {})
    load(path, ["train.precision=bf16", "train.loss_scale=65536", "comm.codec=bf16"], {})
    load(path, ["optim.schedule={name: step, every: 2 epochs, factor: 0.5}", "checkpoint.every=10 m"], {})
    load(path, ["elastic={min_workers: 2, max_workers: 4}", "launch.workers=4", "optim.schedule.name=cosine",
                "optim.schedule.final=0.1"], {})


def test_no_follow_up_errors_from_what_was_left_out(problems):
    found = problems("""
        task: {targte: "a:b"}
        data: {global_batch: lots, micro_batch: 100}
        optim: {name: sdg, momentum: 0.9}
        elastic: {min_workers: 4, max_workers: 2}
    """)
    assert [p.key for p in found] == [
        "task.target", "task.targte", "data.global_batch", "optim.name", "elastic.min_workers"]


def test_a_missing_task(problems):
    (problem,) = problems("train: {epochs: 2}")
    assert problem.key == "task.target" and problem.line == 1 and "required" in problem.message


def test_a_target_that_cannot_be_filled_in_is_not_missing_too(problems):
    (problem,) = problems("task: {target: '${nope}'}")
    assert "cannot be filled in" in problem.message


def test_overrides_name_their_source(problems):
    found = problems(
        "task: {target: 'a:b'}\ndata: {global_batch: 8}",
        ["optim.lr=fast", "nonsense", "trian.epochs=3", "=3", "optim.groups.0.lr=1", "log.sinks.9=jsonl",
         "a=[1"],
        {"HVTRAIN_DATA__MICRO_BATCH": "9",
         "HVTRAIN_OPTIM__LRR": "1", "HVTRAIN___X": "1", "HVTRAIN_RUN__SEED": "{"},
    )
    assert all(p.line is None for p in found)
    by_source = {source: {p.key: p.message for p in found if p.source == source} for source in
                 ("environment", "command line")}
    environment, command = by_source["environment"], by_source["command line"]
    assert "HVTRAIN_DATA__MICRO_BATCH" in environment["data.micro_batch"]
    assert "did you mean lr?" in environment["optim.lrr"] and "HVTRAIN___X" in environment[""]
    assert "not valid YAML" in environment["run.seed"]
    assert "(in optim.lr=fast)" in command["optim.lr"] and "did you mean train?" in command["trian"]
    assert "not valid YAML" in command["a"]
    assert [p.source for p in found] == sorted((p.source for p in found), reverse=True)


def test_override_of_a_list_element_that_is_not_there(problems):
    (problem,) = problems("task: {target: 'a:b'}\nlog: {sinks: [jsonl]}", ["log.sinks.3=jsonl"])
    assert "a list of 1" in problem.message and problem.source == "command line"


def test_an_overridden_mistake_is_no_mistake(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("task: {target: 'a:b'}\noptim: {lr: fast}\n")
    assert load(path, ["optim.lr=1"], {}).optim.lr == 1.0


@pytest.mark.parametrize("content, words", [
    (b"a: [1\nb: 2", ":2: not valid YAML"),
    (b"- a\n- b", "expected sections such as task and train, got a list"),
    (b"\xff\xfe\xfa", "is not UTF-8"), (b"just text", "got the text 'just text'"),
])
def test_unreadable_files(tmp_path, content, words):
    path = tmp_path / "job.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        load(path, env={})
    assert words in str(error.value) and len(error.value.problems) == 1


def test_a_missing_file_and_its_neighbour(tmp_path):
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"no such file; did you mean .*config\.yaml\?"):
        load(tmp_path / "confg.yaml", env={})
    with pytest.raises(ConfigError, match="nor the folder"):
        load(tmp_path / "none" / "confg.yaml", env={})
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path, env={})
