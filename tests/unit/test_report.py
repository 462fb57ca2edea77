"""The run directory, what is written there, and the line that a person sees."""

from __future__ import annotations

import json
import math
import re

import pytest

from hvtrain.config import Job
from hvtrain.control import causes
from hvtrain.errors import EnvironmentNotReady, UsageError
from hvtrain.launch.joblaunch import _success
from hvtrain.report import console
from hvtrain.report.reporter import Reporter
from hvtrain.report.rundir import RunDirectory
from hvtrain.report.sinks import JsonLines

OUTLINE = {"steps": 100, "steps_per_epoch": 10, "samples": 640, "parameters": 12345}


def job(path, **sections):
    return Job.model_validate({"task": {"target": "t:T"}, "run": {"dir": str(path)}, "log": {"console": "plain"},
                               **sections})


def opened(path, **sections):
    reporter = Reporter(job(path, **sections), workers=2, command="hvtrain run c.yaml")
    reporter.open()
    return reporter


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# The directory -------------------------------------------------------------------------------------------
def test_two_jobs_cannot_share_a_directory_and_the_second_learns_who_is_there(tmp_path):
    first, second = RunDirectory(tmp_path / "run"), RunDirectory(tmp_path / "run")
    first.take(fresh=False)
    with pytest.raises(UsageError, match=r"in use by another job \(pid \d+\)"):
        second.take(fresh=False)
    with pytest.raises(UsageError):
        RunDirectory(tmp_path / "run").take(fresh=True)
    first.release()
    assert second.take(fresh=False) is None
    second.release()


def test_a_fresh_start_moves_the_former_run_aside_whole(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    assert directory.take(fresh=True) is None  # nothing there yet
    directory.config.write_text("old")
    directory.metrics.write_text("{}")
    directory.release()
    moved = directory.take(fresh=True)
    assert re.fullmatch(r"run\.before-\d{8}-\d{6}", moved.name)
    assert (moved / "config.yaml").read_text() == "old" and (moved / "metrics.jsonl").exists()
    assert not directory.config.exists() and directory.logs.is_dir()
    with pytest.raises(UsageError):  # and the new one is locked
        RunDirectory(tmp_path / "run").take(fresh=False)


def test_three_fresh_starts_within_a_second(tmp_path, monkeypatch):
    monkeypatch.setattr("time.strftime", lambda _: "20260101-000000")
    moved = set()
    for _ in range(3):
        directory = RunDirectory(tmp_path / "run")
        moved.add(directory.take(fresh=True))
        directory.config.write_text("x")
        directory.release()
    assert len(moved) == 3


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentNotReady, match="run.dir=PATH"):
        RunDirectory(tmp_path / "file" / "run").take(fresh=False)


def test_rewinding_moves_later_and_broken_lines_aside(tmp_path):
    directory = RunDirectory(tmp_path)
    assert directory.rewind_metrics(3) == 0
    directory.metrics.write_text("".join(json.dumps({"step": step}) + "\n" for step in (1, 3, 4, 5)) + '{"ste')
    assert directory.rewind_metrics(3) == 3
    assert [line["step"] for line in lines(directory.metrics)] == [1, 3]
    assert directory.superseded.read_text().splitlines() == ['{"step": 4}', '{"step": 5}', '{"ste']
    assert directory.rewind_metrics(3) == 0


# The reporter --------------------------------------------------------------------------------------------
def test_a_run_from_start_to_end(tmp_path, capsys):
    reporter = opened(tmp_path / "run")
    reporter.outline(OUTLINE), reporter.outline(OUTLINE)
    reporter.measured("train", 10, 0, {"loss": 0.5, "lr": 1e-3})
    reporter.event("checkpoint", step=10, path="p")
    reporter.measured("eval", 10, 1, {"accuracy": 0.9})
    reporter.close(state="done", exit_code=0, reason="done")
    reporter.close(state="failed", exit_code=3, reason="too late")
    run = tmp_path / "run"
    train, evaluation = lines(run / "metrics.jsonl")
    assert (train["step"], train["kind"], train["epoch"], train["loss"]) == (10, "train", 0, 0.5) and train["time"] > 0
    assert (evaluation["kind"], evaluation["accuracy"]) == ("eval", 0.9)
    assert [e["event"] for e in lines(run / "events.jsonl")] == ["started", "checkpoint", "ended"]
    assert all({"event", "time", "step"} <= e.keys() for e in lines(run / "events.jsonl"))
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["exit_code"], status["step"], status["resumable"]) == ("done", 0, 10, False)
    assert json.loads((run / "env.json").read_text())["workers"] == 2 and "target" in (run / "config.yaml").read_text()
    out = capsys.readouterr().out
    assert out.count("12,345 parameters") == 1 and "step  10/100  epoch 0  loss 0.5000" in out


def test_a_resumed_run_rewinds_its_metrics_and_goes_on_behind(tmp_path):
    for step in (None, 20):
        reporter = opened(tmp_path)
        if step is not None:
            reporter.event("resumed", step=20, path="p")
        for now in ((10, 20, 30) if step is None else (30, 40)):
            reporter.measured("train", now, 0, {"loss": 1.0})
        reporter.close(state="failed", exit_code=144, reason="lost", resumable=True)
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [10, 20, 30, 40]
    assert [line["step"] for line in lines(tmp_path / "metrics.superseded.jsonl")] == [30]
    (rewound,) = [event for event in lines(tmp_path / "events.jsonl") if event["event"] == "rewound"]
    assert (rewound["step"], rewound["lines"]) == (20, 1)


def test_a_run_that_starts_over_without_a_checkpoint_sets_all_former_lines_aside(tmp_path):
    for _ in range(2):
        reporter = opened(tmp_path)
        reporter.measured("train", 10, 0, {"loss": 1.0})
        reporter.close(state="failed", exit_code=1, reason="x")
    assert len(lines(tmp_path / "metrics.jsonl")) == len(lines(tmp_path / "metrics.superseded.jsonl")) == 1


def test_resume_never_archives(tmp_path, capsys):
    opened(tmp_path / "run").close(state="done", exit_code=0, reason="")
    opened(tmp_path / "run", checkpoint={"resume": "never"}).close(state="done", exit_code=0, reason="")
    assert "the former run was moved to" in capsys.readouterr().out
    assert sorted(p.name.split("-")[0] for p in tmp_path.iterdir()) == ["run", "run.before"]


def test_an_outline_that_lacks_something_is_shown_all_the_same(tmp_path, capsys):
    reporter = opened(tmp_path)
    reporter.outline({"steps": 5})
    reporter.close(state="done", exit_code=0, reason="")
    assert "0 parameters, 0 samples, 5 steps, 2 workers" in capsys.readouterr().out


# Faults --------------------------------------------------------------------------------------------------
LOSS = {"worker": "w3", "rank": 3, "host": "vm", "cause": "killed", "job_goes_on": True}
ROUND = {"round": 2, "size": 4, "received_bytes": 0}


def shown(tmp_path, capsys, name, step=120, **values):
    reporter = opened(tmp_path)
    reporter.event(name, step=step, **values)
    reporter.close(state="done", exit_code=0, reason="")
    (event,) = [event for event in lines(tmp_path / "events.jsonl") if event["event"] == name]
    assert event == {"event": name, "step": step, "time": event["time"], **values}
    return capsys.readouterr().out.rstrip()


@pytest.mark.parametrize("cause, words", [
    (causes.lost_worker(3, "vm", 0, 9, 120), "rank 3 on vm was killed by SIGKILL"),
    (causes.lost_worker(3, "vm", 7, 0, 120), "rank 3 on vm ended by itself with exit status 7"),
    (causes.silent(3, 5.0, 120), "rank 3 has given no sign of life for elastic.heartbeat_timeout (5 s)"),
    (causes.lost_agent("vm", "vm"), "the agent vm on vm is gone, and its workers with it"),
    (causes.Cause(1, "rank 3: ValueError: bad (value)\nand more"), "rank 3: ValueError: bad (value)")])
def test_a_loss_is_one_short_line(cause, words, tmp_path, capsys):
    out = shown(tmp_path, capsys, "worker_lost", reason=cause.reason, **LOSS)
    assert out == f"step 120: {words}; going on without waiting for it"


def test_the_loss_that_ends_the_job_and_one_with_much_to_say(tmp_path, capsys):
    last = {**LOSS, "reason": "x", "job_goes_on": False}
    assert shown(tmp_path / "1", capsys, "worker_lost", **last) == "step 120: x"
    assert len(shown(tmp_path / "2", capsys, "worker_lost", reason="x" * 5000, **LOSS)) < 300


@pytest.mark.parametrize("reason, size, seconds, line", [
    ("loss", 4, {"first_step": 0.456}, "step 120: 4 workers train again, 0.46 s after the loss was noticed"),
    ("loss", 1, {"first_step": 0.3}, "step 120: 1 worker trains again, 0.30 s after the loss was noticed"),
    ("loss", 4, {"formed": 0.456}, ""), ("grow", 4, {"first_step": 0.5}, ""), ("start", 4, {"first_step": 5.0}, "")])
def test_a_new_round(reason, size, seconds, line, tmp_path, capsys):
    assert shown(tmp_path, capsys, "round", **{**ROUND, "size": size}, reason=reason, seconds=seconds) == line


@pytest.mark.parametrize("source, steps, words", [
    ("memory", 20, "20 steps are taken again (from the snapshot in a host's memory)"),
    ("checkpoint", 1500, "1,500 steps are taken again (from the last durable checkpoint)"),
    ("memory", 0, "no step is taken again (from the snapshot in a host's memory)")])
def test_a_rollback_says_where_from_and_how_far(source, steps, words, tmp_path, capsys):
    out = shown(tmp_path, capsys, "rollback", source=source, steps=steps)
    assert out == f"all workers were lost: going on from step 120, {words}"


def test_a_resize(tmp_path, capsys):
    assert shown(tmp_path / "1", capsys, "resize", old=2, new=4) == "step 120: from 2 to 4 workers"
    assert shown(tmp_path / "2", capsys, "resize", old=2, new=1) == "step 120: from 2 to 1 worker"


def test_the_status_says_how_many_workers_are_in_which_round_and_at_the_end_what_was_lost(tmp_path):
    def status():
        return json.loads((tmp_path / "status.json").read_text())

    reporter = opened(tmp_path)
    reporter.outline(OUTLINE)
    reporter.strength(1, 2)
    assert (status()["state"], status()["round"], status()["size"]) == ("running", 1, 2)
    reporter.strength(1, 1)
    reporter.strength(2, 2)
    assert (status()["round"], status()["size"], status()["workers"]) == (2, 2, 2)
    reporter.faults({"lost_workers": 1, "goodput": 0.99})
    reporter.close(state="done", exit_code=0, reason="done")
    assert status()["faults"] == {"lost_workers": 1, "goodput": 0.99} and status()["size"] == 2


RESULTS = {"steps": 30, "seconds": 2.0, "metrics": {"accuracy": 0.9}, "best": None}
QUIET = {"lost_workers": 0, "repeated_steps": 0, "seconds_down": 0.0, "goodput": 1.0, "steps": 100, "seconds": 12.5}


def test_the_last_words_count_the_steps_of_the_job_not_of_rank_0():
    text = _success(RESULTS, "runs/x", QUIET)
    assert text == "done: 100 steps in 12.5 s\nresult: accuracy 0.9000\nrun directory: runs/x"
    faults = {"lost_workers": 2, "repeated_steps": 20, "seconds_down": 0.75, "goodput": 0.94}
    lost = _success(RESULTS, "runs/x", {**QUIET, **faults})
    assert "faults: 2 workers lost, 20 steps taken again, 0.8 s down, goodput 94.0% (see events.jsonl)\n" in lost


def test_the_last_words_without_an_account_or_without_a_step():
    assert _success(RESULTS, "runs/x", {}).startswith("done: 30 steps in 2.0 s\n")
    nothing = _success({**RESULTS, "steps": 0}, "runs/x", {**QUIET, "steps": 0})
    assert nothing.startswith("nothing to do: this run is complete")


# Odd values ----------------------------------------------------------------------------------------------
def test_numbers_that_are_none_are_kept_and_shown(tmp_path, capsys):
    reporter = opened(tmp_path)
    reporter.measured("eval", 1, 0, {"loss": math.nan, "accuracy": math.inf})
    reporter.close(state="done", exit_code=0, reason="")
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=pytest.fail)["loss"] == "nan"
    assert "loss nan" in capsys.readouterr().out


def test_a_metric_cannot_take_the_place_of_step_and_kind(tmp_path):
    sink = JsonLines(tmp_path / "m.jsonl")
    sink.write("eval", 3, {"step": 99.0, "kind": 1.0, "loss": 0.5})
    sink.close()
    assert lines(tmp_path / "m.jsonl") == [{"step": 3, "kind": "eval", "loss": 0.5}]


# The console ---------------------------------------------------------------------------------------------
def test_the_line():
    values = {"world_size": 2, "loss": 0.123456, "lr": 1e-3, "samples_per_s": 12345.6, "comm_share": 0.254, "epoch": 3,
              "grad_norm": 1.23456, "time": 1.0, "step": 40, "note": "text"}
    assert console.line("train", 40, 1000, values) == (
        "step   40/1000  epoch 3  loss 0.1235  lr 1.00e-03  12,346 samples/s  comm 25%  2 workers  grad_norm 1.235")
    assert console.line("eval", 40, 1000, {"world_size": 1}) == "eval   40/1000  1 worker"
    assert console.line("eval", 4, 10, {"loss": "none", "f1": 0.5, "lr": None}) == "eval  4/10  f1 0.5"


@pytest.mark.parametrize("wanted, terminal, kind", [
    ("auto", True, console.RichConsole), ("auto", False, console.PlainConsole), ("off", True, console.SilentConsole),
    ("plain", True, console.PlainConsole), ("rich", False, console.RichConsole)])
def test_which_console(wanted, terminal, kind, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal, raising=False)
    assert type(console.choose(wanted)) is kind


def test_the_rich_console_prints_text_as_it_is(capsys):
    found = console.RichConsole()
    found.start(10)
    found.measured("train", 1, {"loss": 1.0})
    found.say("a [red]bracket[/red]")
    found.close()
    assert "a [red]bracket[/red]" in capsys.readouterr().out


def test_the_plain_console_writes_text_and_the_end_of_its_line_in_one_piece(monkeypatch):
    # In a container Python does not buffer, so each write is one of the kernel's. print() makes two; a container engine
    # that read between them logged half a line, and `podman logs --tail` ran the last lines of a job together.
    written = []

    class Unbuffered:
        def write(self, text):
            written.append(text)

        def flush(self):
            pass

    monkeypatch.setattr("sys.stdout", Unbuffered())
    console.PlainConsole().say("result: accuracy 0.9400\nrun directory: runs/calm")
    assert written == ["result: accuracy 0.9400\nrun directory: runs/calm\n"]
