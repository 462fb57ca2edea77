"""The run's only writer: takes what rank 0 and the coordinator say, and keeps it in the run directory."""

from __future__ import annotations

import time
from typing import Any, Mapping

from hvtrain.config import Job, dump
from hvtrain.report import console as consoles
from hvtrain.report import environment, wording
from hvtrain.report.rundir import RunDirectory, write_atomically, write_json
from hvtrain.report.sinks import JsonLines, Sink, Tensorboard

STATUS_SECONDS = 1.0
"""status.json is not rewritten more often than this."""


class Reporter:
    """Reports one run. ``open`` before, ``close`` after.

    Args:
        job: the resolved job.
        workers: how many workers the job was started with.
        command: how a user would start it again.
        code: the directory in which the task was found, empty if that is not known.
        given: what a script's job was told explicitly.
    """

    def __init__(self, job: Job, *, workers: int, command: str, code: str = "", given: Mapping[str, Any] | None = None):
        self._job, self._workers, self._command, self._code, self._given = job, workers, command, code, given
        self.directory = RunDirectory(job.run.dir)
        self.console = consoles.choose(job.log.console)
        self.is_open = False
        self._outline: dict[str, Any] = {}
        self._rewound = False
        self._status: dict[str, Any] = {}
        self._status_at = 0.0
        self._summary: dict[str, Any] = {}
        self.account: dict[str, Any] = {}

    def open(self) -> None:
        """Take the run directory into use. Raises UsageError or EnvironmentNotReady if that cannot be."""
        moved = self.directory.take(fresh=self._job.checkpoint.resume == "never")
        self.is_open = True
        write_atomically(self.directory.config,
                         f"# The job as it was resolved; started by: {self._command}\n{dump(self._job)}")
        write_json(self.directory.environment, environment.describe(
            self._command, self._workers, self._code, self._given))
        self._events = JsonLines(self.directory.events)
        self._metrics = JsonLines(self.directory.metrics)
        self._sinks: list[Sink] = [self._metrics] if "jsonl" in self._job.log.sinks else []
        if "tensorboard" in self._job.log.sinks:
            self._sinks.append(Tensorboard(self.directory.tensorboard))
        self._set_status(force=True, state="starting", reason="", step=0, resumable=False, exit_code=None,
                         started=_now(), workers=self._workers)
        self.event("started", workers=self._workers, command=self._command)
        if moved is not None:
            self.console.say(f"the former run was moved to {moved}")

    def outline(self, outline: Mapping[str, Any]) -> None:
        """What is going to be trained; every worker says it, the first one is shown."""
        if self._outline:
            return
        self._outline = dict(outline)
        steps = outline.get("steps", 0)
        self.console.say(f"{self._job.run.name or self._job.run.dir}: {outline.get('parameters', 0):,} parameters, "
                         f"{outline.get('samples', 0):,} samples, {steps:,} steps, "
                         f"{wording.workers(self._workers)}")
        self.console.start(steps)
        self._set_status(force=True, state="running", steps=steps)

    def strength(self, round: int, size: int) -> None:
        """So many workers are in the round of that number now."""
        self._set_status(force=True, round=round, size=size)

    def measured(self, kind: str, step: int, epoch: int, values: Mapping[str, Any]) -> None:
        """Keep and show measured values."""
        if not self._rewound:
            self._rewind(0)
        record = {"epoch": epoch, "time": _now(), **values}
        for sink in self._sinks:
            sink.write(kind, step, record)
        self.console.measured(kind, step, record)
        self._set_status(step=step, epoch=epoch, **{f"last_{kind}": dict(values)})

    def event(self, name: str, step: int | None = None, **values: Any) -> None:
        """Keep an event; the ones that a user should know of are shown."""
        if name in ("resumed", "rollback") and step is not None:
            self._rewind(step)
        line = wording.line(name, step, values)
        if line:
            self.console.say(line)
        current = self._status.get("step", 0) if step is None else step
        self._events.append({"event": name, "time": _now(), "step": current, **values})
        if name in ("checkpoint", "resumed"):
            self._set_status(force=True, step=max(current, self._status.get("step", 0)), **{f"{name}_step": current})

    def faults(self, account: Mapping[str, Any]) -> None:
        """What went wrong in the run and what it has cost."""
        self.account = dict(account)
        self._set_status(force=True, faults=self.account)

    def summary(self, summary: Mapping[str, Any]) -> None:
        """Rank 0's own account of the run."""
        if summary:
            self._summary = dict(summary)

    @property
    def results(self) -> dict[str, Any]:
        """The summary that rank 0 gave, empty if it gave none."""
        return self._summary

    def close(self, *, state: str, exit_code: int, reason: str, resumable: bool = False) -> None:
        """Write down how the run ended and let the directory go."""
        if not self.is_open:
            return
        self.event("ended", state=state, exit_code=exit_code, reason=reason)
        self._set_status(force=True, state=state, reason=reason, exit_code=exit_code, resumable=resumable)
        self.console.close()
        for sink in self._sinks:
            sink.close()
        self._events.close()
        self.directory.release()
        self.is_open = False

    def _rewind(self, step: int) -> None:
        self._rewound = True
        self._metrics.close()
        moved = self.directory.rewind_metrics(step)
        if moved:
            self._events.append({"event": "rewound", "time": _now(), "step": step, "lines": moved})

    def _set_status(self, force: bool = False, **values: Any) -> None:
        self._status.update(values)
        if force or time.monotonic() - self._status_at >= STATUS_SECONDS:
            self._status_at = time.monotonic()
            write_json(self.directory.status, {**self._status, "updated": _now()})


def _now() -> float:
    return round(time.time(), 3)
