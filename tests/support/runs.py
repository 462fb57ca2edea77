"""Starting real jobs from tests, making them suffer, watching them, and finding what they leave behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any, Callable, Sequence

from hvtrain.chaos.plan import Plan
from hvtrain.chaos.registry import Claim, fired
from hvtrain.checkpoint import Store
from hvtrain.checkpoint.digest import digest
from hvtrain.control import messages
from hvtrain.control.console_client import ask
from hvtrain.report import ledgercheck

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
        self.plan: Plan | None = None
        self.process: subprocess.Popen | None = None
        (directory / "tasks.py").write_text((ROOT / "tests" / "support" / "tasks.py").read_text())
        (directory / "job.yaml").write_text(JOB)

    def start(self, *overrides: str, workers: int | None = None, prefix: tuple[str, ...] = (),
              faults: Sequence[dict[str, Any]] = (), **env: str) -> Run:
        """Start ``hvtrain run`` with overrides, under a plan of ``faults``; ``prefix`` puts a launcher before it."""
        options = ["-np", str(workers)] if workers else []
        if faults:
            options += ["--chaos", str(self.write_plan(faults))]
        command = [*prefix, sys.executable, "-m", "hvtrain.cli.main", "run", str(self.base / "job.yaml"),
                   f"run.dir={self.dir}", *overrides, *options]
        return self.launch(command, **env)

    def write_plan(self, faults: Sequence[dict[str, Any]]) -> Path:
        """The file of a plan of ``faults``."""
        self.plan = Plan.model_validate({"faults": list(faults)})
        path = self.base / f"{self.dir.name}.plan.yaml"
        path.write_text(json.dumps({"faults": list(faults)}))
        return path

    def launch(self, command: Sequence[str], **env: str) -> Run:
        """Start ``command``, marked as this run's. It writes into files: a pipe that nobody reads would stop it."""
        with open(self._output("out"), "w") as out, open(self._output("err"), "w") as err:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=self.base,
                                            env=environment(**{MARK: self.mark}, **env))
        return self

    def _output(self, stream: str) -> Path:
        return self.base / f"{self.dir.name}.{stream}"

    def wait(self, seconds: float = 90.0) -> subprocess.CompletedProcess:
        """Wait for the end; the job is killed and the test fails if that takes longer."""
        assert self.process is not None
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill_all()
            self.process.wait(10)
            raise AssertionError(f"not over after {seconds} s\n{self.logs()}") from None
        out, err = self._output("out").read_text(), self._output("err").read_text()
        return subprocess.CompletedProcess(self.process.args, self.process.returncode, out, err)

    def run(self, *overrides: str, workers: int | None = None, code: int = 0, seconds: float = 90.0,
            **more) -> subprocess.CompletedProcess:
        """Start, wait for at most so many ``seconds``, and check the exit code."""
        done = self.start(*overrides, workers=workers, **more).wait(seconds)
        assert done.returncode == code, f"exit {done.returncode}\n{self.logs()}"
        return done

    def until(self, true: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
        """Wait until ``true`` is, while the job runs; returns what it gave."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = true()
            if found:
                return found
            assert self.process is not None
            assert self.process.poll() is None, f"the job is over, before {what}\n{self.logs()}"
            time.sleep(0.02)
        raise AssertionError(f"not within {seconds} s: {what}\n{self.logs()}")

    def until_step(self, step: int, seconds: float = 60.0) -> None:
        """Wait until metrics.jsonl tells of ``step``."""
        self.until(lambda: self.last_step() >= step, f"step {step}", seconds)

    def last_step(self) -> int:
        """The last step that metrics.jsonl tells of; 0 before the first."""
        try:
            with open(self.dir / "metrics.jsonl", "rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 2048))
                lines = file.read().split(b"\n")[:-1]
            return json.loads(lines[-1])["step"]
        except (OSError, IndexError, ValueError):
            return 0

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
        """The last that the launcher and the workers have written."""
        paths = [self._output("out"), self._output("err"), *sorted(self.dir.glob("logs/*"))]
        return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in paths)

    def pids(self, mark: str = "", variable: str = MARK) -> dict[int, str]:
        """Living processes of this run, or those with another ``mark`` in a ``variable``: pid -> name."""
        wanted = f"{variable}={mark or self.mark}".encode()
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                ours = wanted in (entry / "environ").read_bytes()
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

    def pid(self, name: str) -> int:
        """The living process of this run that has this name, as ``ps`` shows it."""
        found = [pid for pid, comm in self.pids().items() if comm == name]
        assert len(found) == 1, f"{name}: {found} among {self.pids()}"
        return found[0]

    def kill_all(self) -> None:
        for pid in self.pids():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    # What became of it ---------------------------------------------------------------------------------
    def digest(self, name: str = "newest") -> str:
        """One hash over the newest checkpoint's weights, by the command that users have."""
        return hvtrain("ckpt", "digest", str(self.dir), "--step", name).stdout.split()[0]

    def ending(self, step: int | None = None) -> dict[str, Any]:
        """All of the newest checkpoint, or that of ``step``, that two runs of one job must share, tensors as hashes."""
        store = Store(self.dir / "checkpoints")
        snapshot = store.read(store.newest_sound() if step is None else store.path(step))
        return {"step": snapshot.step, **{group: digest(snapshot, group) for group in snapshot.groups},
                **{key: snapshot.state[key] for key in ("epoch", "cursor", "callbacks", "evaluated", "best_step")}}

    def struck(self) -> list[Claim]:
        """All strikes of the plan in the order of time. Fails unless every planned one has reached its victim."""
        assert self.plan is not None
        claims = fired(self.dir)
        told = "\n".join(map(str, claims))
        assert all(claim.struck for claim in claims), told
        for number, fault in enumerate(self.plan.faults):
            count = sum(claim.fault == number for claim in claims)
            assert fault.planned in (None, count), f"{fault}: {count} strikes\n{told}\n{self.logs()}"
        kills = sorted(claim.pid for claim in claims if claim.kind == "kill")
        assert not set(kills) & self.pids().keys() and len(set(kills)) == len(kills), told
        return claims

    def exact(self, steps: int) -> ledgercheck.LedgerReport:
        """The ledger's report. Fails unless each sample of ``steps`` steps was used exactly once."""
        report = ledgercheck.check(self.dir / "ledger", steps=steps)
        assert report.ok, f"{report.verdict}\n{report.notes}"
        return report

    def scale(self, workers: int) -> None:
        """Have the job go on with so many workers, as ``hvtrain scale`` does but without a process of its own."""
        answer = ask(self.dir, "scale", messages.Scale(workers=workers), messages.Answer)
        assert answer.accepted, answer

    def workers(self) -> dict[str, dict[str, Any]]:
        """The job's workers by name, as ``hvtrain ps`` shows them."""
        found = ask(self.dir, "ps", messages.Query(), messages.Overview).workers
        return {worker["worker"]: worker for worker in found}


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
