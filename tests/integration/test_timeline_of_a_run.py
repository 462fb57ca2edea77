"""A trace of some steps of a real training, on several ranks and on one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.support import traces
from tests.support.runs import Run

BUCKETS = ("comm.bucket_mb=0.001", "comm.first_bucket_mb=0.0001")
"""So small that the little model has several."""

SCRIPT = """\
from hvtrain import Job, Trainer
from tasks import Blobs

job = Job.model_validate({"task": {"target": "tasks:Blobs"}, "run": {"dir": "script"}, "train": {"steps": 3},
                          "data": {"global_batch": 32}, "log": {"timeline": 2}})
Trainer(job, Blobs()).fit()
"""

STEPS = ("train.epochs=null", "train.steps=14", "eval.every=5 steps")


def ranks(run: Run) -> dict[str, dict[str, list[traces.Found]]]:
    """The rows of the run's timeline by rank."""
    found = traces.checked(json.loads((run.dir / "timeline.json").read_text()))
    return {process.split(" on ")[0]: rows for process, rows in found.items()}


def names(row: list[traces.Found]) -> list[str]:
    return [one.name for one in row]


def inside(row: list[traces.Found], outer: traces.Found) -> list[traces.Found]:
    return [one for one in row if outer.begin <= one.begin and one.end <= outer.end]


def flights(rows: dict[str, list[traces.Found]]) -> list[traces.Found]:
    return [one for name, row in rows.items() if name.startswith("buckets in flight") for one in row]


def test_two_ranks_in_steps_3_to_6(tmp_path):
    run = Run(tmp_path)
    coding = ("comm.codec=fp16", "comm.shared_memory=false")  # between neighbours nothing is compressed
    done = run.run(*STEPS, *BUCKETS, *coding, "data.micro_batch=8", "log.timeline=3-6", workers=2)
    found = ranks(run)
    assert list(found) == ["rank 0", "rank 1"]
    for rows in found.values():
        assert names(rows["steps"]) == [f"step {number}" for number in (3, 4, 5, 6)]
        for step in rows["steps"]:
            assert names(inside(rows["compute"], step)) == ["forward", "backward"] * 2 + ["optimizer"]
            waits = names(inside(rows["wait"], step))
            buckets = set(waits) - {"reductions"}
            assert waits[0] == "reductions" and len(buckets) == len(waits) - 1 > 2
            flown = inside(flights(rows), step)
            assert {one.name for one in flown} == {*buckets, "queued", "on the wire"}
            assert all(one.args["bytes"] > 0 for one in flown if one.name in buckets)
            coded = {one.name for one in inside(rows["codec"], step)}
            assert coded and coded <= buckets  # the last one, losses and flags, travels as it is
        assert {one.args["micro_batch"] for one in rows["compute"] if one.name == "backward"} == {0, 1}
        spans = sum(map(len, rows.values()))
        assert spans == sum(len(inside(row, step)) for row in rows.values() for step in rows["steps"])
    both = zip(found["rank 0"]["steps"], found["rank 1"]["steps"])
    assert all(one.begin < other.end and other.begin < one.end for one, other in both)  # on one axis
    (event,) = run.events("timeline")
    assert event["path"] == str(run.dir / "timeline.json") and event["path"] in done.stdout and event["step"] == 6


@pytest.mark.soak
def test_under_horovodrun_and_in_a_script_and_alone(tmp_path):
    under = Run(tmp_path, "under")
    under.run(*STEPS, "log.timeline=13-20", prefix=(str(Path(sys.executable).parent / "horovodrun"), "-np", "2"))
    assert all(names(rows["steps"]) == ["step 13", "step 14"] and flights(rows) for rows in ranks(under).values())
    script = Run(tmp_path, "script")
    (tmp_path / "train.py").write_text(SCRIPT)
    script.launch([str(Path(sys.executable).parent / "horovodrun"), "-np", "2", sys.executable, "train.py"])
    done = script.wait()
    assert done.returncode == 0, script.logs()
    assert all(names(rows["steps"]) == ["step 2"] and flights(rows) for rows in ranks(script).values())
    assert [event["path"] for event in script.events("timeline")] == [str(Path("script") / "timeline.json")]
    alone = Run(tmp_path, "alone")
    alone.run(*STEPS, "log.timeline=14", workers=1)
    (rows,) = ranks(alone).values()
    assert names(rows["steps"]) == ["step 14"] and names(rows["compute"]) == ["forward", "backward", "optimizer"]
    assert not flights(rows)
    late = Run(tmp_path, "late")
    done = late.run(*STEPS, "log.timeline=15-20", workers=1)
    assert not (late.dir / "timeline.json").exists() and "log.timeline: 15-20 gave no timeline" in done.stdout
