"""The Python API in a plain script: alone, stopped by Ctrl-C, and under horovodrun."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.runs import ROOT, environment

SCRIPT = """\
import sys
from hvtrain import Callback, Job, Trainer
from tasks import Blobs

class StopAtEvaluation(Callback):
    def on_evaluation_end(self, moment):
        moment.stop = moment.step == 4 and moment.rank == moment.size - 1

job = Job.model_validate({"task": {"target": "tasks:Blobs"}, "run": {"dir": "run"}, "data": {"global_batch": 32},
                          "train": {"steps": int(sys.argv[1])}, "log": {"every": 1}, "eval": {"every": "2 steps"},
                          "checkpoint": {"every": "10 steps"}})
callbacks = [StopAtEvaluation()] if "stop" in sys.argv else []
outcome = Trainer(job, Blobs(slow=float(sys.argv[2])), callbacks).fit()
print("step", outcome.step, "stopped", outcome.stopped)
"""


@pytest.fixture
def script(tmp_path):
    (tmp_path / "tasks.py").write_text((ROOT / "tests" / "support" / "tasks.py").read_text())
    (tmp_path / "train.py").write_text(SCRIPT)
    return tmp_path


def start(folder: Path, *arguments: str, prefix: tuple[str, ...] = ()) -> subprocess.Popen:
    return subprocess.Popen([*prefix, sys.executable, "train.py", *arguments], cwd=folder, text=True, env=environment(),
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def status(folder: Path) -> dict:
    return json.loads((folder / "run" / "status.json").read_text())


def test_ctrl_c_stops_a_script_after_a_checkpoint_and_it_goes_on_from_there(script):
    """It once died of KeyboardInterrupt in the middle of a step, with "failed" in its status."""
    process = start(script, "100000", "0.01")
    metrics = script / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not metrics.exists() or len(metrics.read_text().splitlines()) < 15):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0 and "stopped True" in out, err
    found = status(script)
    assert (found["state"], found["exit_code"], found["resumable"]) == ("stopped", 130, True)
    stopped = found["step"]
    again = start(script, str(stopped + 3), "0")
    out, err = again.communicate(timeout=60)
    assert f"step {stopped + 3} stopped False" in out, err
    resumed = [json.loads(line) for line in (script / "run" / "events.jsonl").read_text().splitlines()]
    assert [e["step"] for e in resumed if e["event"] == "resumed"] == [stopped]


@pytest.mark.soak
def test_a_callback_on_one_rank_stops_all_at_the_evaluation(script):
    horovodrun = Path(sys.executable).parent / "horovodrun"
    process = start(script, "50", "0", "stop", prefix=(str(horovodrun), "-np", "2"))
    out, err = process.communicate(timeout=90)
    assert process.returncode == 0 and out.count("step 4 stopped False") == 2, out + err
    assert status(script)["state"] == "done"
