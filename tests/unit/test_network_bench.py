"""What benchmarks/network.py counts, and the ranks and namespaces that it starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import floors  # noqa: E402
import netns  # noqa: E402
import pairs  # noqa: E402
from contestants import ContestantFailed  # noqa: E402
from network import table  # noqa: E402

SHAPES = [(100, 50), (100,), (10, 2)]
ELEMENTS = 5120


# Floors --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind, codec, expected", [
    ("hvtrain", "none", 4 * ELEMENTS), ("hvtrain", "bf16", 2 * ELEMENTS), ("hvtrain", "fp16", 2 * ELEMENTS + 5 * 4),
    ("hvtrain", "int8", ELEMENTS + 5 * 4), ("horovod", "none", 4 * ELEMENTS), ("ddp", "none", 4 * ELEMENTS),
    ("ddp", "fp16", 2 * ELEMENTS), ("ddp", "bf16", 2 * ELEMENTS),
    ("ddp", "powersgd", 4 * (150 + 100 + 20)),  # the last matrix would not be half as large as two vectors
])
def test_bytes_on_the_wire(kind, codec, expected):
    assert floors.wire(kind, codec, SHAPES) == expected


def test_a_rank_sends_its_share_of_a_ring():
    assert [floors.one_way(100, ranks) for ranks in (1, 2, 4)] == [0, 100, 150]
    assert floors.floor(0.1, 50e6, 100e6) == pytest.approx(0.6)


# Table ---------------------------------------------------------------------------------------------------
def row(seconds, sent, counted):
    return {"seconds": {"median": seconds, "min": seconds, "max": seconds}, "sent": sent, "received": sent,
            "counted": counted, "floor": 0.5, "cpu_seconds": 0.2}


def test_the_table_shows_ratios_and_bytes_that_went_another_way():
    found = {"alone": row(0.2, 0, 0), "hvtrain none": row(1.0, 99e6, 100e6), "hvtrain fp16": row(0.5, 50e6, 50e6),
             "ddp": row(1.2, 40e6, 100e6), "ddp fp16": row(0.6, 50e6, 50e6)}
    lines = table(found).splitlines()
    assert lines[2].split()[-3:] == ["2.00", "1.00x", "1.20x"]
    assert lines[3].split()[-3:] == ["1.00", "2.00x", "1.20x"]
    assert [line.endswith("another way") for line in lines[1:]] == [False, False, False, True, False]
    assert "1.20x" in table({"hvtrain fp16": found["hvtrain fp16"], "ddp fp16": found["ddp fp16"]})


# Starting ------------------------------------------------------------------------------------------------
class NoCable:
    """Runs commands where it is: any Python code in place of the peers' script."""

    def __init__(self, monkeypatch, code):
        monkeypatch.setattr(pairs, "HERE", Path("/nowhere"))
        self._code = code

    def inside(self, end, command):
        return [sys.executable, "-c", self._code, *command[2:]]


STEADY = """
import json, os
rank = int(os.environ.get("RANK", 0))
line = json.dumps({"event": "steady", "rank": rank, "seconds": 2.0, "steps": 4}) + "\\n"
os.write(os.open(os.environ["BENCH_RESULT"], os.O_WRONLY | os.O_CREAT | os.O_APPEND), line.encode())
"""


def test_ranks_are_told_their_places_and_report(monkeypatch):
    monkeypatch.setenv("HOROVOD_CYCLE_TIME", "7")
    check = STEADY + 'assert "HOROVOD_CYCLE_TIME" not in os.environ; assert os.environ["GLOO_SOCKET_IFNAME"] == "veth0"'
    found = pairs.run(pairs.Pair("ddp", "ddp"), NoCable(monkeypatch, check), ["mlp"], limit=60)
    assert sorted(each["rank"] for each in found.findings) == [0, 1]
    assert found.steady["seconds"] == 2.0


def test_a_rank_that_fails_ends_the_other_and_is_quoted(monkeypatch):
    code = STEADY + """
import sys, time
if rank == 1:
    sys.exit("rank one gives up")
time.sleep(60)
"""
    with pytest.raises(ContestantFailed, match="rank 1 ended with 1(?s:.*)rank one gives up"):
        pairs.run(pairs.Pair("ddp", "ddp"), NoCable(monkeypatch, code), ["mlp"], limit=60)


def test_ranks_that_do_not_end_are_ended(monkeypatch):
    with pytest.raises(ContestantFailed, match="did not end within 1 s"):
        cable = NoCable(monkeypatch, "import time; time.sleep(60)")
        pairs.run(pairs.Pair("alone", "alone", ranks=1), cable, [], limit=1)


def test_everybody_has_a_floor_of_his_own_kind():
    names = {pair.name: pair for pair in pairs.FIELD}
    assert all(names[pair.base].ranks == 1 for pair in pairs.FIELD)
    assert names["hvtrain int8"].base == "hvtrain alone" and names["ddp fp16"].base == "alone"


# Namespaces ----------------------------------------------------------------------------------------------
def test_what_is_missing_is_said(monkeypatch):
    monkeypatch.setattr(netns.shutil, "which", lambda tool: None if tool == "tc" else f"/sbin/{tool}")
    assert netns.obstacle().startswith("tc not found")
    monkeypatch.setattr(netns.shutil, "which", lambda tool: f"/sbin/{tool}")
    monkeypatch.setattr(netns.os, "geteuid", lambda: 1000)
    assert "need root" in netns.obstacle()


class FakeTools:
    """``ip`` and ``tc`` that only note what namespaces there are, and fail at one command."""

    def __init__(self, fail_at=""):
        self.names, self.fail_at = ["somebody-elses"], fail_at

    def __call__(self, *command):
        if self.fail_at and self.fail_at in command:
            raise netns.NoCable("it does not work")
        if command[:3] == ("ip", "netns", "add"):
            self.names.append(command[3])
        if command[:3] == ("ip", "netns", "delete"):
            self.names.remove(command[3])
        return "\n".join(self.names) if command == ("ip", "netns", "list") else ""


@pytest.mark.parametrize("fail_at", ["veth", "tbf", "add", ""])
def test_nothing_is_left_behind_whatever_fails(monkeypatch, fail_at):
    tools = FakeTools(fail_at)
    monkeypatch.setattr(netns, "_do", tools)
    with pytest.raises(netns.NoCable if fail_at else KeyboardInterrupt):
        with netns.Cable() as cable:
            assert set(cable.names) < set(tools.names)
            raise KeyboardInterrupt
    assert tools.names == ["somebody-elses"]


def test_a_tool_that_fails_is_quoted(monkeypatch):
    failed = subprocess.CompletedProcess([], 2, "", "Operation not permitted\n")
    monkeypatch.setattr(netns.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(netns.NoCable, match="ip netns list ended with 2: Operation not permitted"):
        netns._names()
