"""A directory of checkpoints: find them, read them, remove them.

    checkpoints/
      step-00000100/   manifest.json state.json model.safetensors optimizer.safetensors ...
      step-00000200/
      step-00000200.r1/        the same step again, where names cannot be swapped; the highest counts
      .tmp-00000300-<owner>-x  being written
      .trash-...               being deleted
"""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path
from typing import Collection, Iterator

from hvtrain.checkpoint import temporary
from hvtrain.checkpoint.disk import opened_directory, opened_file, read_into
from hvtrain.checkpoint.manifest import STATE_NAME, Manifest, load, verify
from hvtrain.checkpoint.policy import Retention
from hvtrain.checkpoint.snapshot import Snapshot
from hvtrain.checkpoint.tensorfile import SUFFIX, parse
from hvtrain.errors import CheckpointDamaged, CheckpointError, CheckpointMissing, UserCodeError

_STEP = re.compile(r"step-(?P<step>\d{8,18})(?:\.r(?P<revision>[1-9]\d{0,8}))?")
_log = logging.getLogger(__name__)


def step_name(step: int, revision: int = 0) -> str:
    """The directory name of a step, e.g. ``step-00000200``."""
    return f"step-{step:08d}" + (f".r{revision}" if revision else "")


class Store:
    """The checkpoints in ``directory``, which need not exist yet. Holds no state besides the path."""

    def __init__(self, directory: str | os.PathLike[str]):
        self.directory = Path(directory)

    def steps(self) -> list[int]:
        """Steps that have a directory, ascending; whether they are sound is not looked at."""
        return sorted({step for step, _, _ in self._directories()})

    def candidates(self, step: int | None = None) -> list[Path]:
        """Directories of a step (or of all), the one to prefer first: newest step, then highest revision."""
        found = [item for item in self._directories() if step is None or item[0] == step]
        return [path for _, _, path in sorted(found, reverse=True)]

    def path(self, step: int) -> Path:
        """The directory of a step, sound if any is; CheckpointMissing names the steps that are there."""
        found = self.candidates(step)
        if not found:
            there = ", ".join(map(str, self.steps())) or "none"
            raise CheckpointMissing(f"No checkpoint of step {step} in {self.directory}. "
                                    f"Steps there: {there}.")
        if len(found) > 1:
            return next((path for path in found if not verify(path, quick=True)), found[0])
        return found[0]

    def manifest(self, step_dir: Path) -> Manifest:
        """The manifest of one checkpoint; CheckpointDamaged, or CheckpointMissing, with the reason."""
        with _opened(step_dir) as (_, manifest):
            return manifest

    def sound(self, *, quick: bool = True) -> dict[Path, Manifest]:
        """Checkpoints without a problem, ascending by step, one per step. ``quick`` looks at sizes only."""
        result: dict[int, tuple[Path, Manifest]] = {}
        for path in self.candidates():
            try:
                manifest = self.manifest(path)
            except (CheckpointDamaged, CheckpointMissing):
                continue
            if manifest.step not in result and not verify(path, quick=quick):
                result[manifest.step] = (path, manifest)
        return {result[step][0]: result[step][1] for step in sorted(result)}

    def newest_sound(self, log: logging.Logger | None = None) -> Path | None:
        """The newest checkpoint of which every byte is right, or None. Others are named in the log."""
        for path in self.candidates():
            problems = verify(path)
            if not problems:
                return path
            (log or _log).warning("Checkpoint %s is skipped: %s.", path, "; ".join(problems))
        return None

    def load_newest(self, log: logging.Logger | None = None,
                    groups: Collection[str] | None = None) -> tuple[Path, Snapshot] | None:
        """As newest_sound and read together, but reading the files once."""
        for path in self.candidates():
            try:
                return path, self.read(path, groups)
            except (CheckpointDamaged, CheckpointMissing) as error:
                (log or _log).warning("%s It is skipped.", error)
        return None

    def read(self, step_dir: Path, groups: Collection[str] | None = None) -> Snapshot:
        """Read a checkpoint, all groups or those named, checking each file's sha256 on the way.

        Raises CheckpointMissing if the directory or a group that was asked for is not there,
        CheckpointDamaged if a file does not match, CheckpointError if they exceed this machine's memory.
        """
        with _opened(step_dir) as (descriptor, manifest):
            wanted = manifest.groups if groups is None else list(groups)
            lacking = [group for group in wanted if group not in manifest.groups]
            if lacking:
                raise CheckpointMissing(f"Checkpoint {step_dir} has no {', '.join(lacking)}; it has "
                                        f"{', '.join(manifest.groups) or 'no tensors'}.")
            names = [group + SUFFIX for group in wanted]
            _check_memory(step_dir, sum(manifest.files[name].size for name in [*names, STATE_NAME]))
            try:
                tensors = {group: parse(_read(descriptor, group + SUFFIX, manifest)) for group in wanted}
                state = json.loads(_read(descriptor, STATE_NAME, manifest))
                return Snapshot(step=manifest.step, epoch=manifest.epoch, groups=tensors, state=state,
                                world_size=manifest.world_size, metrics=manifest.metrics,
                                framework=manifest.framework)
            except CheckpointDamaged:
                raise
            except (ValueError, RecursionError, UserCodeError) as error:  # UsageError is a ValueError
                raise CheckpointDamaged(f"{STATE_NAME} is malformed: {error}") from None

    def remove(self, step_dir: Path) -> None:
        """Delete one checkpoint; for readers it goes in one step. CheckpointMissing if it is not there."""
        try:
            temporary.discard(Path(step_dir))
        except FileNotFoundError:
            raise CheckpointMissing(f"There is no checkpoint {step_dir}.") from None
        except OSError as error:
            raise CheckpointError(f"Checkpoint {step_dir} cannot be removed: {error.strerror}.") from error

    def prune(self, retention: Retention, *, quick: bool = True, dry_run: bool = False) -> list[Path]:
        """Delete what ``retention`` does not keep; the paths, oldest first. Damaged ones are left alone.

        With ``quick=False`` every byte of what is to stay is read first, so that a damaged checkpoint is not
        what the others were deleted for.
        """
        sound = self.sound()
        while True:
            doomed = {manifest.step for manifest in retention.doomed(sound.values())}
            kept = [path for path, manifest in sound.items() if manifest.step not in doomed]
            broken = [] if quick else [path for path in kept if verify(path)]
            if not broken:
                break
            for path in broken:
                _log.warning("Checkpoint %s is damaged and does not count.", path)
                del sound[path]
        paths = [path for path, manifest in sound.items() if manifest.step in doomed]
        for path in [] if dry_run else paths:
            # lower revisions first, so that none of them comes to count in between
            for candidate in reversed(self.candidates(sound[path].step)):
                try:
                    self.remove(candidate)
                except CheckpointMissing:  # removed by another process meanwhile
                    pass
        return paths

    def clean(self) -> list[str]:
        """Delete what dead writers left behind, never a live writer's; the names deleted."""
        if not self.directory.is_dir():
            return []
        removed = temporary.sweep(self.directory)
        if removed:
            _log.info("Removed left-overs of interrupted writes in %s: %s.", self.directory,
                      ", ".join(removed))
        return removed

    def _directories(self) -> Iterator[tuple[int, int, Path]]:
        try:
            entries = list(os.scandir(self.directory))
        except FileNotFoundError:
            return
        except OSError as error:
            raise CheckpointError(f"The checkpoints in {self.directory} cannot be listed: "
                                  f"{error.strerror}.") from error
        for entry in entries:
            name = _STEP.fullmatch(entry.name)
            if name and entry.is_dir(follow_symlinks=False):
                step, revision = int(name["step"]), int(name["revision"] or 0)
                if entry.name == step_name(step, revision):
                    yield step, revision, self.directory / entry.name


class _opened:
    """An open checkpoint directory and its manifest; errors name the directory."""

    def __init__(self, path: Path):
        self._path = Path(path)
        self._directory = opened_directory(self._path)

    def __enter__(self) -> tuple[int, Manifest]:
        try:
            descriptor = self._directory.__enter__()
        except FileNotFoundError:
            raise CheckpointMissing(f"There is no checkpoint {self._path}.") from None
        except OSError as error:
            raise CheckpointDamaged(f"Checkpoint {self._path} is damaged: it cannot be opened as a "
                                    f"directory: {error.strerror}.") from None
        try:
            return descriptor, load(descriptor, self._path.name)
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._directory.__exit__(None, None, None)
        if isinstance(error, CheckpointDamaged):
            raise CheckpointDamaged(f"Checkpoint {self._path} is damaged: {error}.") from error


def _read(directory: int, name: str, manifest: Manifest) -> bytearray:
    entry = manifest.files[name]
    with opened_file(directory, name) as (descriptor, size):
        if size != entry.size:  # before any memory is taken for what the manifest claims
            raise CheckpointDamaged(f"{name} has {size} bytes, expected {entry.size}")
        data = bytearray(size)
        if read_into(descriptor, memoryview(data)) != entry.sha256:
            raise CheckpointDamaged(f"{name} does not match its sha256")
    return data


def _check_memory(path: Path, needed: int) -> None:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > memory:
        raise CheckpointError(f"Checkpoint {path} has {needed} bytes to load; this machine has {memory} "
                              "bytes of memory. Load it on a larger machine, or export the weights alone: "
                              "hvtrain ckpt export")
