"""A worker that hosts a script: by which settings it trains, and what becomes of scripts that go wrong."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from hvtrain import adapters, hosting
from hvtrain.config.loading import load_script
from hvtrain.control.boot import Boot
from hvtrain.control.client import Address
from hvtrain.control.workplace import Workplace
from hvtrain.errors import UsageError, UserCodeError
from hvtrain.loop import Outcome

FIT = """\
from hvtrain import hosting

def fit(framework=None, **given):
    return hosting.current().train(lambda job: None, framework, given=given, defaults={"train": {"epochs": 1}})
"""


class Idle(Workplace):
    """Writes down the job instead of training it."""

    outcome = Outcome(5, False)

    def work(self, job, task, callbacks=()):
        self._loop = SimpleNamespace(step=5, salvaged_step=None)
        self.job = job
        return self.outcome


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Makes a workplace for a script with these lines and these settings of the command."""
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(adapters, "prepare", lambda framework, **settings: None)

    def make(text: str, *overrides: str, framework: str = "torch") -> Idle:
        path = tmp_path / "train.py"
        path.write_text(FIT + text)
        job, given = load_script(path, framework, None, [f"run.dir={tmp_path / 'run'}", *overrides], {})
        (tmp_path / "run").mkdir(exist_ok=True)
        boot = Boot(job, Address("", 0, ""), str(tmp_path), str(tmp_path / "run"), threads=1, given=given)
        return Idle(boot, SimpleNamespace(retire=lambda: None, rank=0, round=0), "w0", 0, 0)

    return make


def test_the_script_trains_as_its_worker_and_goes_on(place, capsys):
    worker = place("print('step', fit('torch', train={'epochs': 7}, data={'global_batch': 6}).step, hosting.is_first())",
                   "data.global_batch=4")
    assert worker.run_script().step == 5 and capsys.readouterr().out == "step 5 True\n"
    assert (worker.job.train.epochs, worker.job.data.global_batch) == (7, 4), "what was typed goes before the script"
    assert hosting.current() is None


def test_the_whole_jobs_settings_are_the_commands(place, caplog):
    """It runs already; but what only matters in the loop is the script's."""
    worker = place("fit(run={'dir': 'elsewhere'}, launch={'workers': 9}, comm={'bucket_mb': 2.0, 'timeout': '1s'})",
                   "run.seed=3")
    worker.run_script()
    job = worker.job
    assert (job.run.seed, job.launch.workers, job.comm.bucket_mb, str(job.comm.timeout)) == (3, None, 2.0, "30s")
    assert job.run.dir != "elsewhere" and "launch and run holds when it runs alone" in caplog.text
    assert "bucket_mb: 2.0" in (Path(job.run.dir) / "config.yaml").read_text()


@pytest.mark.parametrize(("text", "error", "words"), [
    ("", UsageError, "has ended without training"),
    ("import sys\nsys.exit('no data')", UserCodeError, "sys.exit\\('no data'\\)"),
    ("fit()\nfit()", UsageError, "a second time"),
    ("fit('keras')", UsageError, "framework=keras"),
    ("try:\n    fit(train={'epoch': 3})\nexcept Exception:\n    pass", Exception, "did you mean epochs"),
    ("raise FileNotFoundError('results/')", FileNotFoundError, "results/"),
])
def test_what_goes_wrong_in_a_script_is_not_passed_over(place, text, error, words):
    """Also if the script itself does so."""
    with pytest.raises(error, match=words):
        place(text).run_script()
    assert hosting.current() is None


def test_a_script_ends_where_the_training_was_stopped(place, capsys):
    """It must not save a model that is half trained; but it may tidy up."""
    worker = place("try:\n    fit()\n    print('half trained')\nexcept Exception:\n    print('caught')\n"
                   "finally:\n    print('tidy')")
    worker.outcome = Outcome(5, True)
    assert worker.run_script().stopped and capsys.readouterr().out == "tidy\n"


def test_a_script_that_exits_with_success_has_ended(place):
    assert place("import sys\nfit()\nsys.exit(0)").run_script().step == 5
