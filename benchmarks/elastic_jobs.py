"""Elastic jobs of all contestants: their commands, and a running job that leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contestants import HERE, WORKLOADS, _tool
from outages import Line
from pace import PHASE
from steplog import FOLDER, PERIOD, StepReader

MARK = "BENCH_JOB"
"""In the environment of every process of a job, with a value of its own: by that they are found and ended."""

KINDS = {"hvtrain": "hvtrain run", "stock": "hvd.elastic, as released", "horovod": "hvd.elastic, our engine",
         "torchrun": "torchrun --max-restarts"}
"""Contestants and their names. The engine's edits let Horovod's own elastic mode notice a dead peer sooner."""

LAUNCHERS = ("HOROVOD_", "HVTRAIN_", "TORCHELASTIC_", "TORCH_DISABLE_SHARE_", "PET_")
"""Beginnings of variables by which launchers and their settings reach workers."""

LAUNCHER_SECONDS, TRACKER_SECONDS = 5.0, 2.0
"""How long a launcher may take to end in order, and multiprocessing's tracker to remove its semaphores after it."""

ENDLESS = 1_000_000
"""Steps of a peer's job, which is ended from outside."""


@dataclass(frozen=True)
class Setup:
    """What all contestants train. ``batch`` is per worker, ``period`` the seconds of a step.

    ``overrides``, ``phase``, ``framework`` are for hvtrain; ``stock`` is a Python that has Horovod as it was released.
    """

    workload: str
    batch: int
    workers: int
    period: float
    overrides: tuple[str, ...] = ()
    phase: str = ""
    stock: str = ""
    framework: str = "torch"


def command(kind: str, setup: Setup, steps: int, folder: Path) -> list[str]:
    """The command of contestant ``kind``; writes the files that it needs into ``folder``."""
    arguments = [setup.workload, "--steps", str(steps), "--batch", str(setup.batch)]
    if kind in ("horovod", "stock"):
        python = setup.stock if kind == "stock" else sys.executable
        return [python, "-m", "horovod.runner.launch", "-np", str(setup.workers), "--min-np", "2",
                "--host-discovery-script", str(_hosts(folder, setup.workers)),
                python, str(HERE / "peers" / "horovod_elastic.py"), *arguments]
    if kind == "torchrun":
        return [_tool("torchrun"), "--standalone", "--nproc-per-node", str(setup.workers), "--max-restarts", "1000",
                str(HERE / "peers" / "torchrun_elastic.py"), *arguments,
                "--checkpoint", str(folder / "checkpoint.safetensors")]
    load = WORKLOADS[setup.framework][setup.workload]
    module = {"torch": "task", "keras": "keras_task"}[setup.framework]
    optim = [f"optim.{key}={value}" for key, value in load.settings.items()]
    return [sys.executable, "-m", "hvtrain.cli.main", "run", str(HERE / "job.yaml"), "-np", str(setup.workers),
            f"run.dir={folder / 'run'}", f"framework={setup.framework}", f"task.target={module}:Paced",
            f"task.args.workload={setup.workload}",
            f"train.steps={steps}", f"data.global_batch={setup.batch * setup.workers}", f"optim.name={load.optim}",
            *optim, f"checkpoint.every={steps} steps", *setup.overrides]


def environment(kind: str, setup: Setup, steps_folder: Path, mark: str) -> dict[str, str]:
    """This process's environment without leftovers of launchers, with what the workers need to know."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(LAUNCHERS)}
    path = [str(HERE), str(HERE.parent), *filter(None, [env.get("PYTHONPATH")])]
    env.update({MARK: mark, FOLDER: str(steps_folder), PERIOD: str(setup.period), PHASE: setup.phase,
                "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path),
                "TMPDIR": str(steps_folder.parent)})
    if kind == "torchrun":
        # Without it restarted workers find the addresses of the dead ones in the agent's store, and start over and over
        # (torch 2.13, pytorch issue 135712). It has no effect with the static rendezvous, hence --standalone.
        env["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    return env


class Job:
    """A running job in ``folder``, which exists and is empty. To be used in a ``with``."""

    def __init__(self, kind: str, setup: Setup, steps: int, folder: Path):
        self.kind, self.setup, self.steps, self.folder = kind, setup, steps, folder
        self.lines: list[Line] = []
        self.load = os.getloadavg()[0]
        self._mark = uuid.uuid4().hex
        self._steps_folder = folder / "steps"
        self._reader = StepReader(self._steps_folder)

    def __enter__(self) -> Job:
        self._steps_folder.mkdir()
        with open(self.folder / "output", "wb") as output:
            self.process = subprocess.Popen(
                command(self.kind, self.setup, self.steps, self.folder), cwd=self.folder, stdin=subprocess.DEVNULL,
                env=environment(self.kind, self.setup, self._steps_folder, self._mark), stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True)
        return self

    def __exit__(self, *_: Any) -> None:
        self.end()

    def look(self) -> bool:
        """Read what the workers have written; whether the launcher is still running."""
        running = self.process.poll() is None
        self.lines += self._reader.new()
        return running

    def wait(self, seconds: float) -> int | None:
        """The launcher's exit code, or None if it is still running after ``seconds``."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def owns(self, pid: int) -> bool:
        """Whether ``pid`` is a living process of this job."""
        try:
            ours = f"{MARK}={self._mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            return ours and "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
        except OSError:
            return False

    def note(self, pid: int) -> Path:
        """Where the worker ``pid`` writes when it has come to the phase that it is to die in."""
        return self._steps_folder / f"{pid}.died"

    def pids(self) -> list[int]:
        """All living processes of this job."""
        found = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
        return [pid for pid in found if self.owns(pid)]

    def end(self) -> None:
        """End all that is left: the launcher is asked first, so that it clears away what it has made.

        Raises:
            RuntimeError: something was still there after 20 seconds.
        """
        if self.process.poll() is None:
            self.process.terminate()
            if self.wait(LAUNCHER_SECONDS) is None:
                self.process.kill()
                self.process.wait()
        started = time.monotonic()
        while left := self.pids():
            waited = time.monotonic() - started
            for pid in left:
                if waited > TRACKER_SECONDS or not _is_tracker(pid):
                    _kill(pid)
            if waited > 20:
                raise RuntimeError(f"processes of a {self.kind} job do not end: {left}")
            time.sleep(0.05)

    def account(self) -> str:
        """The command and the end of the output, for the reader of a failure."""
        logs = [self.folder / "output", *sorted(self.folder.glob("run/logs/*"))]
        tails = (f"--- {path.name}\n{path.read_text(errors='replace')[-2000:]}" for path in logs if path.exists())
        return f"  {' '.join(str(part) for part in self.process.args)}\n" + "\n".join(tails)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _is_tracker(pid: int) -> bool:
    try:
        return b"multiprocessing.resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def has_engine(python: str) -> bool:
    """Whether the Horovod of the interpreter ``python`` is hvtrain's engine. Raises RuntimeError: it has none."""
    look = ("import importlib.util, pathlib; found = importlib.util.find_spec('horovod'); "
            "print((pathlib.Path(found.origin).parent / 'hvtrain_engine.json').exists() if found else 'none')")
    done = subprocess.run([python, "-c", look], capture_output=True, text=True, timeout=60)
    if done.stdout.strip() not in ("True", "False"):
        raise RuntimeError(f"{python} has no Horovod; benchmarks/stock_horovod.py makes one that has\n{done.stderr}")
    return done.stdout.strip() == "True"


def _hosts(folder: Path, workers: int) -> Path:
    """The script that tells Horovod of two "hosts", which share the workers."""
    script = folder / "hosts.sh"
    script.write_text(f"#!/bin/sh\necho localhost:{workers - workers // 2}\necho 127.0.0.1:{workers // 2}\n")
    script.chmod(0o755)
    return script
