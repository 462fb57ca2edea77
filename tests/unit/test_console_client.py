"""``hvtrain ps`` and ``hvtrain scale``: what they print, and what they say when there is nobody to ask."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys

import pytest
from click.testing import CliRunner

from hvtrain.cli.main import cli
from hvtrain.control import console_client as module, messages as m
from hvtrain.errors import ProtocolError, UsageError
from hvtrain.report.rundir import RunDirectory, write_json
from tests.support.control import run, until


@pytest.fixture
def directory(tmp_path):
    """The directory of a run that is said to be running."""
    write_json(tmp_path / "status.json", {"state": "running", "reason": "", "step": 70})
    return tmp_path


@pytest.fixture
def dead_pid():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def announce(directory, port, token="t" * 64, pid=None):
    RunDirectory(directory).announce({"host": "127.0.0.1", "port": port, "token": token, "pid": pid or os.getpid()})


def invoke(*arguments):
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    return result.output, result.exception


def in_a_job(directory, *commands, **kwargs):
    """What the commands print beside a job of two workers."""
    async def scenario(job):
        await job.start()
        announce(directory, job.address.port, job.coordinator.client_token)
        found = []
        for command in commands:
            found.append(await asyncio.to_thread(invoke, command[0], directory, *command[1:]))
            await until(lambda: len(job.coordinator._door._lines) == 3)  # it has gone again
        return found

    return run(scenario, **kwargs)


# Answers -------------------------------------------------------------------------------------------------
def test_ps(directory):
    ((text, error),) = in_a_job(directory, ["ps"])
    assert error is None
    head, _, *rows = [line.split("  ") for line in text.splitlines()]
    assert head == ["round 1 (active), 2 of 2 workers, step 0"]
    cells = [[cell.strip() for cell in row if cell] for row in rows]
    assert cells == [
        ["AGENT", "HOST", "SLOTS", "PID", "WORKERS", "STATE"], ["host", "host", "4", "1", "2", "here"], [],
        ["WORKER", "HOST", "SLOT", "PID", "RANK", "ROUND", "STEP", "STATE"],
        ["w0", "host", "0", "100", "0", "1", "0", "training"],
        ["w1", "host", "1", "101", "1", "1", "0", "training"]]


def test_ps_as_json_and_scale(directory):
    (text, _), (scaled, good), (again, _), (refused, error) = in_a_job(
        directory, ["ps", "--json"], ["scale", 3], ["scale", 3], ["scale", 9])
    found = json.loads(text)
    assert found.keys() == {"job", "agents", "workers"} and found["job"]["target"] == 2
    assert [(worker["rank"], worker["pid"]) for worker in found["workers"]] == [(0, 100), (1, 101)]
    assert (scaled, good, again) == ("from 2 to 3 workers\n", None, "it has 3 workers already\n")
    assert isinstance(error, UsageError) and error.exit_code == 2 and "the agents have 4 slots" in str(error)


def test_what_is_not_known_is_a_dash():
    from hvtrain.cli.ps import _text

    starting = {"worker": "w0", "host": "vm", "slot": 0, "pid": None, "rank": None, "round": None, "step": 0}
    text = _text({"job": {"round": 0, "size": 0, "target": 2, "status": "none", "step": 0}, "agents": [],
                  "workers": [{**starting, "state": "starting"}]})
    assert text.startswith("no round yet, 2 workers wanted")
    assert text.endswith("w0      vm    0     -    -     -      0     starting")


@pytest.mark.parametrize("workers", ["0", "-1", "many", "1000000"])
def test_senseless_sizes(directory, workers):
    _, error = invoke("scale", directory, "--", workers)
    assert isinstance(error, SystemExit) and error.code == 2


def test_an_answer_of_another_kind(directory):
    async def scenario(job):
        announce(directory, job.address.port, job.coordinator.client_token)
        with pytest.raises(ProtocolError, match="expected Answer .* got Overview"):
            await asyncio.to_thread(module.ask, directory, "scale", m.Query(), m.Answer)

    run(scenario)


# Nobody to ask -------------------------------------------------------------------------------------------
def why_not(directory):
    _, error = invoke("ps", directory)
    assert isinstance(error, UsageError) and error.exit_code == 2
    return str(error)


def test_a_directory_that_is_no_run(tmp_path):
    assert "is not a run directory: it has no status.json" in why_not(tmp_path)


@pytest.mark.parametrize("state, reason, words", [
    ("done", "done", "says: done, at step 70"),
    ("stopped", "stopped by SIGTERM", "says: stopped: stopped by SIGTERM, at step 70"),
    ("failed", "rank 1: ValueError: x", "says: failed: rank 1: ValueError: x, at step 70")])
def test_a_run_that_has_ended(directory, state, reason, words):
    write_json(directory / "status.json", {"state": state, "reason": reason, "step": 70})
    assert "is not running. Its status.json " + words in why_not(directory)


def test_a_launcher_that_was_killed_and_left_its_file_behind(directory, dead_pid):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    announce(directory, port, pid=dead_pid)
    said = why_not(directory)
    assert f"left over from a launcher (pid {dead_pid}) that was killed" in said
    assert "still says: running, at step 70" in said


def test_a_launcher_that_was_killed_and_whose_port_somebody_else_has(directory, dead_pid, monkeypatch):
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        announce(directory, server.getsockname()[1], pid=dead_pid)
        assert "that was killed" in why_not(directory)


def test_a_launcher_that_was_killed_before_it_listened(directory, dead_pid):
    (directory / ".lock").write_text(f"{dead_pid}\n")
    assert "but its launcher is gone" in why_not(directory)


def test_a_run_that_is_only_just_starting(directory):
    (directory / ".lock").write_text(f"{os.getpid()}\n")
    assert "only just been started" in why_not(directory)


def test_a_launcher_that_does_not_answer(directory, monkeypatch):
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        announce(directory, server.getsockname()[1])
        assert "does not answer" in why_not(directory)


def test_a_wrong_token(directory):
    async def scenario(job):
        announce(directory, job.address.port)
        return await asyncio.to_thread(why_not, directory)

    assert "does not answer" in run(scenario)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"host": "h", "port": "x", "token": "t", "pid": 1}', "\xff"])
def test_a_file_that_is_damaged(directory, text):
    (directory / "control.json").write_text(text, encoding="latin-1")
    assert "control.json cannot be used" in why_not(directory)


def test_the_file_is_for_its_user_alone_and_its_token_is_never_shown(directory):
    announce(directory, 1, token="secret" * 9)
    assert (directory / "control.json").stat().st_mode & 0o777 == 0o600
    assert "secret" not in why_not(directory)


def test_somebody_elses_run(directory, monkeypatch):
    def denied(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_text", denied)
    with pytest.raises(UsageError, match="only by the user who started the run"):
        module.find(directory)
