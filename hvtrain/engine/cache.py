"""Where compiled engines are kept between environments.

    <cache>/engine/sources/horovod-0.28.1.tar.gz
    <cache>/engine/<key>/horovod-....whl, engine.json     complete, or not there at all
    <cache>/engine/work-<end of key>/                     a build in progress; stale if its lock is free
    <cache>/engine/<key>.log  <key>.lock
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterator, Mapping

from hvtrain.errors import EngineBuildError

RECORD_NAME = "engine.json"


def cache_directory(env: Mapping[str, str] | None = None) -> Path:
    """``$HVTRAIN_CACHE``, else ``$XDG_CACHE_HOME/hvtrain``, else ``~/.cache/hvtrain``. Not created."""
    env = os.environ if env is None else env
    if env.get("HVTRAIN_CACHE"):
        return Path(env["HVTRAIN_CACHE"]).expanduser()
    if env.get("XDG_CACHE_HOME"):
        return Path(env["XDG_CACHE_HOME"]).expanduser() / "hvtrain"
    return Path(env.get("HOME") or Path.home()) / ".cache" / "hvtrain"


class EngineCache:
    """The engines below ``root``."""

    def __init__(self, root: Path | None = None):
        self.root = (cache_directory() if root is None else root) / "engine"

    def prepare(self) -> None:
        """Create the directories. Raises EngineBuildError if they cannot be written."""
        try:
            self.sources.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._unusable(error)
        if not os.access(self.root, os.W_OK):
            self._unusable("permission denied")

    @property
    def sources(self) -> Path:
        return self.root / "sources"

    def log(self, key: str) -> Path:
        """The file with the output of the last build of ``key``."""
        return self.root / f"{key}.log"

    def wheel(self, key: str) -> Path | None:
        """The finished wheel of ``key``, None if there is none."""
        directory = self.root / key
        wheels = sorted(directory.glob("horovod-*.whl"))
        return wheels[0] if wheels and (directory / RECORD_NAME).exists() else None

    @contextmanager
    def locked(self, key: str, waiting: Callable[[], None]) -> Iterator[None]:
        """Hold the lock of ``key``: one build of it at a time on this machine. ``waiting`` is called before a wait.

        The lock goes with the process, however it ends.
        """
        with open(self.root / f"{key}.lock", "w", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                waiting()
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def workspace(self, key: str) -> Iterator[Path]:
        """An empty directory for building ``key``, gone afterwards. Hold the lock.

        Raises EngineBuildError where its path has characters that Horovod's CMake files take for a pattern.
        """
        work = self.root / f"work-{key.rpartition('-')[2]}"
        if not re.fullmatch(r"[\w./-]+", str(work), re.ASCII):
            raise EngineBuildError(f"Horovod cannot be compiled below {self.root}: its path must consist of letters, "
                                   f"digits and ._-/ only.", remedy="export HVTRAIN_CACHE=DIRECTORY")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def publish(self, key: str, finished: Path) -> Path:
        """Make the directory ``finished`` (same file system) the entry of ``key``; returns its wheel."""
        target = self.root / key
        if target.exists():  # a forced build, or a damaged entry
            shutil.rmtree(target)
        os.rename(finished, target)
        wheel = self.wheel(key)
        if wheel is None:
            raise EngineBuildError(f"The build left no wheel in {target}.")
        return wheel

    def _unusable(self, error: object) -> None:
        raise EngineBuildError(f"The cache directory {self.root} cannot be written ({error}).",
                               remedy="export HVTRAIN_CACHE=DIRECTORY  (one that you can write to)")
