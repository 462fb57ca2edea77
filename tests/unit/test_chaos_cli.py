"""``hvtrain chaos check|example|report``."""

from __future__ import annotations

import json
import os
import time

import pytest
from click.testing import CliRunner

from hvtrain.chaos import BadPlan, load
from hvtrain.chaos.example import EXAMPLE
from hvtrain.chaos.registry import Registry, directory
from hvtrain.cli.chaos import chaos


def invoke(*args):
    return CliRunner().invoke(chaos, args)


def test_example_checks_itself(tmp_path):
    (tmp_path / "plan.yaml").write_text(invoke("example").output)
    result = invoke("check", str(tmp_path / "plan.yaml"), "-np", "4", "--steps", "200")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert lines[0].split() == ["#", "STRIKES", "FAULT"]
    assert lines[2].split(maxsplit=2) == ["1", "2", "kill ranks 1 and 2 in bucket of step 60"]
    assert lines[12].startswith("11  by chance  kill a random worker every 20s")
    assert lines[-1].endswith("is a valid plan: 13 strikes and those by chance, seed 0")
    assert all(len(line) <= 120 for line in EXAMPLE.splitlines())


def test_check_refuses(tmp_path):
    (tmp_path / "plan.yaml").write_text(EXAMPLE)
    result = invoke("check", str(tmp_path / "plan.yaml"), "-np", "2")
    assert isinstance(result.exception, BadPlan) and "no rank 3 among 2 workers" in str(result.exception)


@pytest.fixture
def struck(tmp_path):
    (tmp_path / "plan.yaml").write_text(EXAMPLE)
    registry = Registry(load(tmp_path / "plan.yaml"), tmp_path)
    registry.claim(0, 0, 2, rank=2, pid=4711, step=40, phase="backward", round=3)
    claim = registry.claim(11, 0, "random", rank=1, pid=4712, step=55, phase="", round=4)
    registry.claim(11, 1, "random", rank=1, pid=4713, step=56, phase="", round=4)
    unwritten = next(directory(tmp_path).glob("*-random-1.json"))
    unwritten.write_text("")
    os.utime(unwritten, (time.time() + 1,) * 2)  # the kernel's clock for files lags by some milliseconds
    assert claim
    return tmp_path


def test_report(struck):
    head, first, second, torn = invoke("report", str(struck)).output.splitlines()
    assert head.split() == ["TIME", "#", "RANK", "PID", "ROUND", "STEP", "PHASE", "FAULT"]
    assert first.split(maxsplit=7)[1:] == [
        "0", "2", "4711", "3", "40", "backward", "kill rank 2 in backward of step 40"]
    assert second.split()[1:7] == ["11", "1", "4712", "4", "55", "-"]
    assert torn.endswith("its process ended before it struck")


def test_report_as_json(struck):
    values = json.loads(invoke("report", str(struck), "--json").output)
    assert [(value["fault"], value["pid"], value["struck"]) for value in values] == [
        (0, 4711, True), (11, 4712, True), (11, 0, False)]


def test_report_of_a_run_without_faults(tmp_path):
    assert invoke("report", str(tmp_path)).output == f"No fault has struck {tmp_path}.\n"
    assert invoke("report", str(tmp_path / "nowhere")).exit_code == 2
