"""``hvtrain run --resume RUN``: a run directory is all that is needed to go on."""

from __future__ import annotations

import json
import os

import pytest
from click.testing import CliRunner

from hvtrain.cli.main import cli
from hvtrain.cli.run_source import of_run
from hvtrain.config import dump, load
from hvtrain.errors import ConfigError, UsageError


@pytest.fixture
def former(tmp_path, monkeypatch):
    """Makes a run directory as a job with such settings has left it; this process is elsewhere."""
    start, code, run = tmp_path / "start", tmp_path / "code", tmp_path / "start" / "runs" / "one"
    for directory in (code, run):
        directory.mkdir(parents=True)

    def make(*overrides: str, given=None, **known):
        (code / "job.yaml").write_text("task: {target: 'tasks:Task'}\n")
        job = load(code / "job.yaml", ["run.dir=runs/one", *overrides])
        (run / "config.yaml").write_text(dump(job))
        (run / "env.json").write_text(json.dumps({"code": str(code), "cwd": str(start), "given": given, **known}))
        return run

    monkeypatch.chdir(tmp_path)
    return make


def test_the_run_goes_on_where_it_was_started_with_its_own_job(former):
    run = former("optim.lr=0.5", "launch.workers=3", "checkpoint.resume=never")
    source = of_run(os.path.relpath(run))
    assert os.getcwd() == str(run.parents[1]), "where its paths mean the same"
    assert os.path.dirname(source.path) == str(run.parents[2] / "code"), "where its code is"
    source.check()
    job, given = source.load(["train.epochs=7"], source.framework(()))
    assert (job.optim.lr, job.launch.workers, job.train.epochs, given) == (0.5, 3, 7, None)
    assert job.run.dir == str(run) and job.checkpoint.resume == "auto", "it goes on, whatever it was to do at first"


def test_a_run_that_has_not_saved_yet_begins_where_it_was_to_begin(former):
    run = former("checkpoint.resume=/somewhere/else")
    assert of_run(run).load([], "torch")[0].checkpoint.resume == "/somewhere/else"
    (run / "checkpoints" / "step-00000010").mkdir(parents=True)
    assert of_run(run).load([], "torch")[0].checkpoint.resume == "auto"
    assert of_run(run).load(["checkpoint.resume=never"], "torch")[0].checkpoint.resume == "never"


def test_with_another_number_of_stages_the_split_that_was_found_is_found_anew(former):
    """The run's config.yaml has the split that hvtrain had found; `--resume RUN hybrid.stages=3` was refused because of it."""
    run = former("hybrid.stages=2", "hybrid.split=[4,3]", "hybrid.microbatches=8", "data.micro_batch=null")
    alike = of_run(run).load(["hybrid.stages=2"], "torch")[0].hybrid
    assert (alike.stages, alike.split, alike.microbatches) == (2, [4, 3], 8)
    for stages in (1, 3, "auto"):
        other = of_run(run).load([f"hybrid.stages={stages}"], "torch")[0].hybrid
        assert (other.stages, other.split, other.microbatches) == (stages, None, 8)
    given = of_run(run).load(["hybrid.stages=3", "hybrid.split=[2,2,3]"], "torch")[0].hybrid
    assert given.split == [2, 2, 3]
    assert of_run(run).load(["hybrid=null"], "torch")[0].hybrid is None
    with pytest.raises(ConfigError, match=r"each of the 3 stages, got 2: \[4, 3\]. Left out \(hybrid.split=null\), hvtrain finds"):
        load(run / "config.yaml", ["hybrid.stages=3"])


def test_a_script_is_told_again_what_it_was_told(former):
    run = former("task.target=null", "task.script=train.py", given={"all": {"train": {"epochs": 2}, "optim": {"lr": 0.1}},
                                                   "over": {"train": {"epochs": 2}}})
    job, given = of_run(run).load(["optim.lr=0.2"], "keras")
    assert job.task.script == "train.py"
    assert given.all == {"train": {"epochs": 2}, "optim": {"lr": 0.2}}
    assert given.over == {"train": {"epochs": 2}, "optim": {"lr": 0.2}}


def test_what_is_no_run_directory_and_code_that_is_not_there_are_named(former, tmp_path):
    with pytest.raises(UsageError, match=r"is not the directory of a run .*hvtrain run FILE run.dir="):
        of_run(tmp_path)
    run = former(code="/nowhere/code")
    with pytest.raises(UsageError, match=r"was in /nowhere/code, which is not there"):
        of_run(run).check()


def test_the_command_needs_a_job_or_a_run():
    result = CliRunner().invoke(cli, ["run"])
    assert result.exit_code == 2 and "or give a run to go on with: --resume RUN" in result.output
    result = CliRunner().invoke(cli, ["run", "nothing.yaml"])
    assert result.exit_code == 2 and "'nothing.yaml' does not exist" in result.output
