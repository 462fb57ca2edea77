"""Starting a contestant and reading what its workers found: the same way for all of them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Sequence

import keras_models
import models
from stopwatch import RESULT

HERE = Path(__file__).resolve().parent
WORKLOADS = {"torch": models.WORKLOADS, "keras": keras_models.WORKLOADS}


class ContestantFailed(RuntimeError):
    """A contestant did not run through; the message carries the end of its output."""


@dataclass(frozen=True)
class Contestant:
    """``kind`` is hvtrain, horovod, ddp or alone. ``cycle_ms`` is Horovod's HOROVOD_CYCLE_TIME, its default if None.

    ``fused`` asks for PyTorch's fused optimizer, ``reduce`` is how Horovod reduces in Keras (peers/horovod_keras.py).
    ``overrides`` are further settings of hvtrain's job.
    """

    name: str
    kind: str
    fused: bool = False
    cycle_ms: float | None = None
    overrides: tuple[str, ...] = ()
    framework: str = "torch"
    reduce: str = "grouped"

    def command(self, workload: str, workers: int, steps: int, folder: Path) -> list[str]:
        load = WORKLOADS[self.framework][workload]
        python = sys.executable
        script = "horovod_keras.py" if self.framework == "keras" else {
            "horovod": "horovod_plain.py", "ddp": "ddp.py"}.get(self.kind, "")
        arguments = [str(HERE / "peers" / script), workload, "--steps", str(steps), "--batch", str(load.batch),
                     *(["--fused"] if self.fused else []),
                     *(["--reduce", self.reduce] if self.framework == "keras" else [])]
        if self.kind == "alone":
            return [python, *arguments]
        if self.kind == "horovod":
            return [_tool("horovodrun"), "-np", str(workers), python, *arguments]
        if self.kind == "ddp":
            return [_tool("torchrun"), "--nproc-per-node", str(workers), "--master-port", str(_free_port()), *arguments]
        optim = [f"optim.{key}={value}" for key, value in load.settings.items()]
        optim += ["framework=keras", "task.target=keras_task:Benchmark"] if self.framework == "keras" else [
            f"optim.args.fused={str(self.fused).lower()}"]
        return [_tool("hvtrain"), "run", str(HERE / "job.yaml"), "-np", str(workers), f"run.dir={folder / 'run'}",
                f"task.args.workload={workload}", f"task.args.steps={steps}", f"train.steps={steps}",
                f"data.global_batch={load.batch * workers}", f"optim.name={load.optim}", *optim, *self.overrides]


@dataclass
class Run:
    """What one run found. ``findings`` are the lines that the workers wrote."""

    contestant: str
    launched: float
    wall: float
    load: float
    findings: list[dict[str, Any]] = field(default_factory=list)

    @property
    def steady(self) -> dict[str, Any]:
        """Rank 0's measurement of the steady steps."""
        return next(f for f in self.findings if f["event"] == "steady" and f["rank"] == 0)

    @property
    def ranks(self) -> int:
        """How many processes it was."""
        return sum(f["event"] == "steady" for f in self.findings)

    @property
    def first_step(self) -> float:
        """Seconds from the command until every rank had done its first step."""
        return max(f["time"] for f in self.findings if f["event"] == "first_step") - self.launched


def run(contestant: Contestant, workload: str, workers: int, steps: int, *, limit: float = 600) -> Run:
    """Run ``contestant`` once, from its command to its end.

    Raises:
        ContestantFailed: it ended with an error, took longer than ``limit`` seconds, or a rank is missing.
    """
    with tempfile.TemporaryDirectory(prefix="hvtrain-bench-") as name:
        folder = Path(name)
        command = contestant.command(workload, workers, steps, folder)
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("HOROVOD_", "HVTRAIN_"))}
        environment.update({RESULT: str(folder / "result.jsonl"), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
                            "PYTHONPATH": os.pathsep.join(filter(None, [str(HERE.parent), environment.get("PYTHONPATH")]))})
        if contestant.cycle_ms is not None:
            environment["HOROVOD_CYCLE_TIME"] = str(contestant.cycle_ms)
        load = os.getloadavg()[0]
        with open(folder / "output", "w+b") as output:
            launched = time.time()
            process = subprocess.Popen(command, env=environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=output,
                                       stderr=subprocess.STDOUT, start_new_session=True)
            try:
                code = process.wait(limit)
            except BaseException as error:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                if not isinstance(error, subprocess.TimeoutExpired):
                    raise
                code = None
            wall = time.time() - launched
            output.seek(0)
            text = output.read().decode(errors="replace")
        result = folder / "result.jsonl"
        findings = [json.loads(line) for line in result.read_text().splitlines()] if result.exists() else []
        finished = sum(f["event"] == "steady" for f in findings)
        if code != 0 or finished != workers:
            why = f"did not end within {limit:.0f} s" if code is None else f"ended with {code}"
            raise ContestantFailed(f"{contestant.name} {why}, {finished} of {workers} ranks finished:\n"
                                   f"  {' '.join(command)}\n{text[-3000:]}")
        return Run(contestant.name, launched, wall, load, findings)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    import importlib.metadata
    import platform

    versions = {}
    for package in ("torch", "tensorflow", "tensorflow-cpu", "keras"):
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package.removesuffix("-cpu")] = importlib.metadata.version(package)

    model = next((line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.machine())
    return {"cpu": model, "cores": len(os.sched_getaffinity(0)), **versions,
            "python": platform.python_version(), "date": time.strftime("%Y-%m-%d %H:%M")}


def versions(machine: dict[str, Any], framework: str) -> str:
    """The versions in :func:`machine` that matter to who uses ``framework``."""
    names = ["tensorflow", "keras"] if framework == "keras" else ["torch"]
    return ", ".join(f"{name} {machine[name]}" for name in names)


def _tool(name: str) -> str:
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if not found:
        sys.exit(f"{name} was not found beside {sys.executable} or on the PATH; set the environment up first (make demo)")
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
