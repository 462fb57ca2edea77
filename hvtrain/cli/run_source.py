"""What ``hvtrain run`` is to run: a job file, a script, or a run that is to go on."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Sequence


@dataclass(frozen=True)
class Source:
    """A job file or a script at ``path``, a script with ``settings`` from a job file."""

    path: str
    settings: str | None = None

    def check(self) -> None:
        """Raise UsageError for what cannot be run."""
        from hvtrain.errors import UsageError

        if self.path.endswith(".ipynb"):
            raise UsageError(f"{self.path} is a notebook, which workers cannot run. Make a script of it: jupyter nbconvert "
                             f"--to script {self.path}; then hvtrain run {self.path[:-len('.ipynb')]}.py")
        if self.settings is not None and not self.path.endswith(".py"):
            raise UsageError(f"--config gives a script its settings, but {self.path} is no Python script (.py). Give one job "
                             f"file: hvtrain run {self.path}")

    def framework(self, overrides: Sequence[str]) -> str:
        """The framework, at a first look."""
        from hvtrain.control.warmstart import guess_framework

        text: tuple[str, ...] = ()
        if self.settings is not None:
            with open(self.settings, encoding="utf-8", errors="replace") as file:
                text = (file.read(1 << 16),)
        return guess_framework(self.path, (*overrides, *text))

    def load(self, overrides: Sequence[str], framework: str) -> tuple[Any, Any]:
        """The job, and what was given explicitly if it is a script's."""
        from hvtrain.config.loading import load, load_script

        if self.path.endswith(".py"):
            return load_script(self.path, framework, self.settings, overrides)
        return load(self.path, overrides), None


@dataclass(frozen=True)
class FormerRun(Source):
    """The run in the directory ``run``: its resolved job, with the code where it was. ``path`` is a file beside that code."""

    run: str = ""
    given: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        if not os.path.isdir(os.path.dirname(self.path)):
            from hvtrain.errors import UsageError

            raise UsageError(f"the code of the run {self.run} was in {os.path.dirname(self.path)}, which is not there on "
                             f"this machine. Mount or copy it there, or give the job file: hvtrain run FILE run.dir={self.run}")

    def framework(self, overrides: Sequence[str]) -> str:
        from hvtrain.control.warmstart import guess_framework

        return guess_framework(os.path.join(self.run, "config.yaml"), tuple(overrides))

    def load(self, overrides: Sequence[str], framework: str) -> tuple[Any, Any]:
        """The job, going on from its newest checkpoint; and what its script was given before, and is given now."""
        from hvtrain.checkpoint.store import Store
        from hvtrain.config import load
        from hvtrain.config.layers import merged
        from hvtrain.config.loading import Given, read_overrides
        from hvtrain.saving import checkpoint_directory

        own = [f"run.dir={json.dumps(self.run)}"]
        own += self._without_split(own, overrides)
        job = load(os.path.join(self.run, "config.yaml"), [*own, *overrides])
        if job.checkpoint.resume == "never" or Store(checkpoint_directory(job)).steps():
            job = load(os.path.join(self.run, "config.yaml"), [*own, "checkpoint.resume=auto", *overrides])
        if job.task.script is None:
            return job, None
        now = read_overrides(overrides)
        return job, Given(merged(self.given.get("all", {}), now), merged(self.given.get("over", {}), now))


    def _without_split(self, own: Sequence[str], overrides: Sequence[str]) -> list[str]:
        """Where the number of stages is another one now, the split that was kept is none any more, and is found anew."""
        from hvtrain.config import load
        from hvtrain.config.loading import read_overrides

        now = read_overrides(overrides).get("hybrid")
        if not isinstance(now, dict) or "stages" not in now or "split" in now:
            return []
        before = load(os.path.join(self.run, "config.yaml"), own).hybrid
        return ["hybrid.split=null"] if before is not None and before.stages != now["stages"] else []


def of_run(directory: str) -> FormerRun:
    """The run in ``directory``, which is gone on with in the directory that it was started in, if that is here.

    Raises:
        UsageError: there is no run, or it does not say where its code is.
    """
    from hvtrain.errors import UsageError

    run = Path(directory).resolve()
    try:
        known = json.loads((run / "env.json").read_text())
        code = known["code"]
    except (OSError, ValueError, KeyError):
        code = ""
    if not code or not (run / "config.yaml").is_file():
        raise UsageError(f"{directory} is not the directory of a run that can go on by itself: its config.yaml and env.json "
                         "say what was trained, and where the code is. Give the job file: hvtrain run FILE "
                         f"run.dir={directory}")
    if os.path.isdir(known.get("cwd", "")):
        os.chdir(known["cwd"])  # paths of the job mean the same
    return FormerRun(os.path.join(code, "config.yaml"), None, str(run), known.get("given") or {})
