"""What RUN and --step of ``hvtrain ckpt`` mean."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hvtrain.checkpoint import Retention, Store, best, verify
from hvtrain.checkpoint.manifest import FILE_NAME
from hvtrain.errors import CheckpointMissing, UsageError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Target:
    """A store, the one checkpoint that was named if any, and the run's saved config.yaml if there is one."""

    store: Store
    single: Path | None = None
    config: Path | None = None

    @classmethod
    def locate(cls, run: Path) -> Target:
        """From a run directory, its checkpoints directory, or one checkpoint directory.

        Raises CheckpointMissing for anything else.
        """
        if not run.is_dir():
            raise CheckpointMissing(f"There is no directory {run}.")
        # resolved, so that "." has a parent and a name; a symlink to a checkpoint may be typed here
        run = run.resolve()
        if (run / FILE_NAME).exists() or run.name.startswith("step-"):
            return cls(Store(run.parent), single=run, config=_config_of(run.parent.parent))
        config = _config_of(run)
        if config is not None:
            return cls(_store_of(run, config), config=config)
        if (run / "checkpoints").is_dir():
            return cls(Store(run / "checkpoints"))
        if run.name != "checkpoints" and not Store(run).steps():
            raise CheckpointMissing(f"{run} is neither a run (it has no config.yaml and no checkpoints), nor "
                                    "a directory of checkpoints (it has no step-...), nor a checkpoint.")
        return cls(Store(run), config=_config_of(run.parent))

    def paths(self) -> list[Path]:
        """The checkpoint directories meant by RUN alone."""
        return [self.single] if self.single is not None else self.store.candidates()

    def pick(self, step: str | None, metric: str | None = None) -> Path:
        """One checkpoint: of a step number, "newest" (the newest sound one), or "best" (by ``metric``).

        Raises CheckpointMissing if there is none, UsageError for anything else.
        """
        if self.single is not None:
            name = self.single.name.partition(".")[0]
            if step is None or step == "newest" or (step.isdigit() and name == f"step-{int(step):08d}"):
                return self.single
            raise UsageError(f"{self.single} is one checkpoint already; --step {step} needs the run's "
                             "directory.")
        if step is None or step == "newest":
            newest = self.store.newest_sound()
            if newest is None:
                raise CheckpointMissing(f"There is no sound checkpoint in {self.store.directory}.")
            return newest
        if step == "best":
            return self._best(metric)
        if not step.isdigit():
            raise UsageError(f"--step must be a number of steps, newest or best; got {step!r}.")
        return self.store.path(int(step))

    def retention(self, keep: int | None, metric: str | None) -> Retention:
        """The run's own rules, with what the command line gives instead."""
        settings = self._settings()
        if keep is None and settings is None:
            raise UsageError(f"The run's config.yaml is not beside {self.store.directory}; say how many to "
                             "keep with: --keep N")
        if settings is None:
            return Retention(keep=keep or 1, best_metric=metric)
        return Retention(keep=keep or settings.keep, keep_every=settings.keep_every,
                         best_metric=metric or settings.best,
                         best_mode="auto" if metric else settings.best_mode)

    def _best(self, metric: str | None) -> Path:
        settings = self._settings()
        mode = "auto"
        if metric is None and settings is not None:
            metric, mode = settings.best, settings.best_mode
        if metric is None:
            raise UsageError("--step best needs to know the metric: the run has no checkpoint.best. "
                             "Name it with: --metric NAME")
        sound = self.store.sound()
        while True:
            winner = best(sound.values(), metric, mode)
            if winner is None:
                raise CheckpointMissing(f"No sound checkpoint in {self.store.directory} has the metric "
                                        f"{metric!r}.")
            path = next(path for path, manifest in sound.items() if manifest is winner)
            problems = verify(path)
            if not problems:
                return path
            _log.warning("Checkpoint %s is skipped: %s.", path, "; ".join(problems))
            del sound[path]

    def _settings(self) -> Any:
        if self.config is None:
            return None
        from hvtrain.config import load

        # The saved file alone counts, not this shell's HVTRAIN_... variables. A file that cannot be read is
        # an error rather than "no best": pruning would delete the best otherwise.
        return load(self.config, env={}).checkpoint


def _config_of(run: Path) -> Path | None:
    path = run / "config.yaml"
    return path if path.is_file() else None


def _store_of(run: Path, config: Path) -> Store:
    from hvtrain.config import load

    if (run / "checkpoints").is_dir():
        return Store(run / "checkpoints")
    elsewhere = load(config, env={}).checkpoint.dir
    return Store(elsewhere if elsewhere is not None else run / "checkpoints")
