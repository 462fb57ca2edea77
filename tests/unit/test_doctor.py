"""The doctor's and the engine report's judgement, on made-up machines."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from hvtrain.engine.doctor import Check, Facts, Status, can_train, diagnose, to_json
from hvtrain.engine.frameworks import Framework
from hvtrain.engine.info import EngineInfo, describe
from hvtrain.engine.machine import Interface, Machine, existing_parent
from hvtrain.engine.toolchain import Missing

GIB = 1 << 30
TORCH, TENSORFLOW = Framework("torch", "2.13.0"), Framework("tensorflow", "2.21.0")
RECORD = {"frameworks": {"torch": "2.13.0"}, "edits": ["init-failure"], "edits_digest": "now",
          "variables": {"HOROVOD_WITH_GLOO": "1"}}


def info(record: dict | None = None, *present: Framework, version: str = "0.28.1", digest: str = "now") -> EngineInfo:
    return describe(version, RECORD if record is None else record, present or (TORCH,), digest)


def facts(**changes) -> Facts:
    machine = Machine(hostname="box", cores=4, memory_total=16 * GIB, memory_free=8 * GIB,
                      interfaces=(Interface("lo", "127.0.0.1"),), gpus=(), disk_path="/", disk_free=50 * GIB)
    base = Facts(python=(3, 11), engine=info(), machine=machine, missing=(), hostname_resolves=True,
                 open_files=4096, cache="/c", cache_writable=True)
    return replace(base, **changes)


def machine(**changes) -> Facts:
    return facts(machine=replace(facts().machine, **changes))


def finding(name: str, given: Facts) -> Check:
    return next(check for check in diagnose(given) if check.name == name)


def test_a_good_machine_is_all_ok() -> None:
    checks = diagnose(facts())
    assert {check.status for check in checks} == {Status.OK}
    assert can_train(checks) and not any(check.remedy for check in checks)


@pytest.mark.parametrize("name, given, status, words", [
    ("python", facts(python=(3, 9)), Status.FAIL, "3.10"),
    ("frameworks", facts(engine=describe("", None, (), "now")), Status.FAIL, "Neither PyTorch nor TensorFlow"),
    ("engine", facts(engine=describe("", None, (TORCH,), "now")), Status.FAIL, "not installed"),
    ("engine", facts(engine=describe("0.28.1", None, (TORCH,), "now")), Status.FAIL, "not hvtrain's engine"),
    ("engine", facts(engine=info(None, replace(TORCH, version="2.14.0"))), Status.FAIL, "2.13.0, but 2.14.0"),
    ("engine", facts(engine=info(None, TORCH, TENSORFLOW)), Status.WARN, "not built for tensorflow"),
    ("engine", facts(engine=info(digest="newer")), Status.WARN, "other edits"),
    ("compiler", facts(missing=(Missing("CMake is needed", "cmake"),)), Status.WARN, "CMake is needed"),
    ("compiler", facts(missing=(Missing("x", "g++"),), engine=describe("", None, (TORCH,), "")), Status.FAIL, "x"),
    ("gpus", machine(gpus=("Some GPU",)), Status.WARN, "without GPU collectives"),
    ("memory", machine(memory_free=GIB // 2), Status.WARN, "0.5 GiB free"),
    ("network", machine(interfaces=()), Status.FAIL, "not even loopback"),
    ("network", facts(hostname_resolves=False), Status.WARN, "box, does not resolve"),
    ("disk", machine(disk_free=GIB // 2), Status.WARN, "0.5 GiB"),
    ("disk", machine(disk_free=1000), Status.FAIL, "0.0 GiB"),
    ("open files", facts(open_files=256), Status.WARN, "256"),
    ("cache", facts(cache_writable=False), Status.WARN, "/c cannot be written"),
])
def test_findings(name: str, given: Facts, status: Status, words: str) -> None:
    check = finding(name, given)
    assert (check.status, words in check.message) == (status, True), check
    assert check.remedy
    assert can_train(diagnose(given)) == all(c.status is not Status.FAIL for c in diagnose(given))


def test_an_engine_for_one_of_two_frameworks_still_trains() -> None:
    found = info(None, TORCH, TENSORFLOW)
    assert found.usable == ("torch",) and not found.matches and found.remedy == "hvtrain engine build"


def test_a_matching_engine_has_nothing_to_mend() -> None:
    found = info()
    assert found.matches and found.ours and not found.remedy and found.to_json()["matches"] is True


def test_json_can_be_serialised() -> None:
    given = facts()
    text = json.dumps(to_json(diagnose(given), given))
    assert json.loads(text)["can_train"] is True
    assert json.loads(text)["checks"][0] == {
        "name": "python", "status": "ok", "message": "Python 3.11", "remedy": ""}


@pytest.mark.parametrize("given, code", [(facts(), 0), (facts(python=(3, 9)), 3)])
def test_the_command_ends_with_3_when_training_cannot_work(monkeypatch: pytest.MonkeyPatch, given: Facts,
                                                           code: int) -> None:
    from hvtrain.cli.doctor import doctor

    monkeypatch.setattr("hvtrain.engine.doctor.run_doctor", lambda directory: (diagnose(given), given))
    for arguments in ([], ["--json"]):
        result = CliRunner().invoke(doctor, arguments)
        assert result.exit_code == code
    assert json.loads(result.output)["can_train"] == (code == 0)


def test_existing_parent(tmp_path: Path) -> None:
    assert existing_parent(tmp_path / "a" / "b") == tmp_path
