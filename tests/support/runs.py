"""Starting real jobs from tests, watching them, and finding what they leave behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MARK = "TEST_RUN_MARK"
JOB = """\
version: 1
task: {target: "tasks:Blobs", args: {}}
data: {global_batch: 32}
train: {epochs: 4}
optim: {name: adamw, lr: 3e-3}
log: {every: 1, console: plain}
checkpoint: {every: 10 steps}
"""


class Run:
    """A job in ``directory``; ``mark`` is in the environment of all its processes."""

    def __init__(self, directory: Path, name: str = "run"):
        self.base = directory
        self.dir = directory / name
        self.mark = uuid.uuid4().hex
        self.process: subprocess.Popen | None = None
        (directory / "tasks.py").write_text((ROOT / "tests" / "support" / "tasks.py").read_text())
        (directory / "job.yaml").write_text(JOB)

    def start(self, *overrides: str, workers: int | None = None, prefix: tuple[str, ...] = (), **env: str) -> Run:
        """Start ``hvtrain run`` with overrides; ``prefix`` puts a launcher before it."""
        options = ["-np", str(workers)] if workers else []
        command = [*prefix, sys.executable, "-m", "hvtrain.cli.main", "run", str(self.base / "job.yaml"),
                   f"run.dir={self.dir}", *overrides, *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                        cwd=self.base, env=environment(**{MARK: self.mark}, **env))
        return self

    def wait(self, seconds: float = 90.0) -> subprocess.CompletedProcess:
        """Wait for the end; the job is killed and the test fails if that takes longer."""
        assert self.process is not None
        try:
            out, err = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.kill_all()
            out, err = self.process.communicate()
            raise AssertionError(f"not over after {seconds} s\n{out}\n{err}\n{self.logs()}") from None
        return subprocess.CompletedProcess(self.process.args, self.process.returncode, out, err)

    def run(self, *overrides: str, workers: int | None = None, code: int = 0, **more) -> subprocess.CompletedProcess:
        """Start, wait, and check the exit code."""
        done = self.start(*overrides, workers=workers, **more).wait()
        assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}\n{self.logs()}"
        return done

    def until_step(self, step: int, seconds: float = 60.0) -> None:
        """Wait until metrics.jsonl tells of ``step``."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if any(r["step"] >= step for r in self.records("metrics.jsonl")):
                return
            assert self.process is not None and self.process.poll() is None, self.logs()
            time.sleep(0.02)
        raise AssertionError(f"step {step} was not reached in {seconds} s\n{self.logs()}")

    def records(self, name: str) -> list[dict]:
        """The lines of a JSON-lines file of the run; a last line that is being written is left out."""
        result = []
        path = self.dir / name
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                result.append(json.loads(line))
            except ValueError:
                break
        return result

    def losses(self) -> dict[int, float]:
        return {r["step"]: r["loss"] for r in self.records("metrics.jsonl") if r["kind"] == "train"}

    def status(self) -> dict:
        return json.loads((self.dir / "status.json").read_text())

    def events(self, name: str) -> list[dict]:
        return [event for event in self.records("events.jsonl") if event["event"] == name]

    def logs(self) -> str:
        return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self.dir.glob("logs/*")))

    def pids(self) -> dict[int, str]:
        """Living processes of this run: pid -> name."""
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                ours = self.mark.encode() in (entry / "environ").read_bytes()
                if ours and "\nState:\tZ" not in (entry / "status").read_text():
                    found[int(entry.name)] = (entry / "comm").read_text().strip()
            except OSError:
                continue
        return found

    def gone(self, seconds: float = 5.0) -> bool:
        """Whether no process of the run is left, within ``seconds``."""
        deadline = time.monotonic() + seconds
        while self.pids():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def kill_all(self) -> None:
        for pid in self.pids():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def digest(self, name: str = "newest") -> str:
        """One hash over the newest checkpoint's weights, by the command that users have."""
        return hvtrain("ckpt", "digest", str(self.dir), "--step", name).stdout.split()[0]


def hvtrain(*arguments: str, code: int = 0) -> subprocess.CompletedProcess:
    """Run an ``hvtrain`` command to its end."""
    done = subprocess.run([sys.executable, "-m", "hvtrain.cli.main", *arguments], capture_output=True, text=True,
                          timeout=60, env=environment())
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def environment(**more: str) -> dict[str, str]:
    """This process's environment without leftovers of launchers, with the checkout importable."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("HOROVOD_", "HVTRAIN_"))}
    path = os.pathsep.join([str(ROOT), *filter(None, [env.get("PYTHONPATH")])])
    return {**env, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **more}


def ledger(directory: Path) -> dict[int, list[int]]:
    """Samples used in each step, by all ranks of one run whose ledgers are in ``directory``."""
    steps: dict[int, list[int]] = {}
    for path in directory.glob("ledger-*.jsonl"):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            steps.setdefault(entry["step"], []).extend(entry["samples"])
    return steps
