"""Conducting a drill: prepare its directory, run the job twice, gather, judge.

::

    RUN.drill/  undisturbed/  disturbed/          the two runs' own directories
                undisturbed.txt  disturbed.txt    what they printed
                plan.yaml  report.json  .drill    the plan, the result, the mark of a drill's directory
"""

from __future__ import annotations

import fcntl
import json
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterator, Sequence

from hvtrain import chaos
from hvtrain.chaos.plan import Plan
from hvtrain.config import Job, load
from hvtrain.drill import runs
from hvtrain.drill.defaults import default_plan
from hvtrain.drill.evidence import Evidence, gather
from hvtrain.drill.verdict import DrillReport, judge
from hvtrain.drill.weights import compare
from hvtrain.errors import HvtrainError, UsageError
from hvtrain.launch import settling
from hvtrain.launch.settling import Ground

MARK = ".drill"
TAIL = 15
"""So many of the last lines of a failed run's output are shown."""


class DrillFailed(HvtrainError):
    """The undisturbed run failed, so there is nothing to compare with; the exit code is that run's."""

    def __init__(self, message: str, code: int):
        self.exit_code = code
        super().__init__(message)


def conduct(config: str, overrides: Sequence[str], *, workers: int | None, plan_path: str | None, steps: int,
            limit: float, say: Callable[[str], None]) -> DrillReport:
    """Run the drill of the job file ``config``; ``limit`` is in seconds and per run.

    Raises:
        ConfigError: the job file, an override or the plan has mistakes.
        UsageError: the drill's directory is in use, or is none.
        DrillFailed: the undisturbed run failed.
    """
    overrides = [*overrides, *([f"launch.workers={workers}"] if workers else [])]
    job = load(config, overrides)
    workers = job.launch.workers or 1
    if not settling.is_settled(job):  # once for both runs: two measurements would come out differently
        settled = settling.settle(job, str(Path(config).resolve().parent), Ground(workers), say).job
        section = {**settled.model_dump(mode="json")["hybrid"], "memory": None}  # which has been held against it
        overrides.append(f"hybrid={json.dumps(section)}")
    plan = (chaos.load(plan_path, workers=workers, steps=steps) if plan_path is not None
            else default_plan(workers, steps, job.data.global_batch))
    directory = Path(job.run.dir.rstrip("/") + ".drill")
    settings = {name: _settings(overrides, plan, steps, directory / name) for name in ("undisturbed", "disturbed")}
    for values in settings.values():
        _comparable(load(config, values))
    with _taken(directory):
        (directory / "plan.yaml").write_text(chaos.dump(plan))
        say(f"drill of {config}: {steps} steps on {workers} worker{'s' if workers > 1 else ''}; everything about it "
            f"is in {directory}")
        calm = _run(["run", config, *settings["undisturbed"]], directory / "undisturbed", limit)
        if calm.code != 0:
            raise DrillFailed(_tail(directory / "undisturbed.txt", calm), calm.code if 0 < calm.code < 256 else 1)
        say(f"undisturbed: {calm.seconds:.1f} s; now under {plan.name}")
        arguments = ["run", config, *settings["disturbed"], "--chaos", str(directory / "plan.yaml")]
        disturbed = _run(arguments, directory / "disturbed", limit)
        weights = compare(directory / "undisturbed" / "checkpoints", directory / "disturbed" / "checkpoints")
        report = judge(config, workers, steps, plan, calm, disturbed, weights)
        (directory / "report.json").write_text(json.dumps(report.to_json(), indent=1) + "\n")
        return report


def _settings(overrides: Sequence[str], plan: Plan, steps: int, run_dir: Path) -> list[str]:
    """The overrides of one run: first what a user may still change, then the user's, then what a drill needs."""
    phases = {fault.at for fault in plan.faults}
    some = f"{max(1, steps // 3)} steps"
    return [
        f"checkpoint.every={some if 'checkpoint' in phases else f'{steps} steps'}", "checkpoint.keep=1",
        "checkpoint.keep_every=null", "checkpoint.best=null",
        f"eval.every={some if 'evaluation' in phases else 'null'}",
        *overrides,
        f"run.dir={run_dir}", f"train.steps={steps}", "train.epochs=null", "train.early_stopping=null",
        "checkpoint.dir=null", "checkpoint.resume=never", "log.ledger=true", "log.console=plain",
    ]


def _comparable(job: Job) -> None:
    if job.checkpoint.every is None:
        raise UsageError("a drill compares the checkpoints at the end of its two runs; leave out checkpoint.every=null")


@contextmanager
def _taken(directory: Path) -> Iterator[None]:
    """The drill's directory, emptied of a former drill, locked while this one lasts."""
    if directory.exists() and not (directory / MARK).exists() and any(directory.iterdir()):
        raise UsageError(f"{directory} exists and is not from a drill. Move it away, or choose another place with "
                         "run.dir=PATH (the drill uses PATH.drill)")
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / MARK, "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another drill is using {directory}. Wait for it, or choose another place with "
                             "run.dir=PATH (the drill uses PATH.drill)") from None
        for name in ("undisturbed", "disturbed"):
            shutil.rmtree(directory / name, ignore_errors=True)
        yield


def _run(arguments: list[str], run_dir: Path, limit: float) -> Evidence:
    ended = runs.run(arguments, run_dir.with_suffix(".txt"), limit)
    evidence = gather(run_dir, ended.code, ended.seconds)
    if not ended.late:
        return evidence
    reason = f"it was stopped because it took longer than {limit:.0f} s; see {run_dir.with_suffix('.txt')}"
    return Evidence(ended.code or 1, ended.seconds, reason, evidence.events, evidence.claims, evidence.records)


def _tail(output: Path, evidence: Evidence) -> str:
    lines = output.read_text(errors="replace").splitlines()[-TAIL:]
    return "\n".join([f"the undisturbed run ended with exit code {evidence.code}, so there is nothing to compare with. "
                      f"{evidence.reason or 'Its last lines'} (all of it: {output})", *(f"  {line}" for line in lines)])
