"""A run's own directory: where everything about it lies, and how it is taken into use.

::

    run.dir/  config.yaml   the resolved job              logs/rank-N.log  what each worker printed
              env.json      versions and machine          checkpoints/     see hvtrain.checkpoint
              status.json   state, reason, step           metrics.jsonl    one measurement a line
              .lock         held while a job runs         events.jsonl     one event a line
              control.json  how commands reach the job    ledger/          who used which sample (log.ledger)
              sums.json     what their last bits rest on  timeline.json    a trace of some steps (log.timeline)
                                                          profile.json     what the model's layers cost (hybrid)
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from hvtrain.errors import EnvironmentNotReady, UsageError


WORKERS_LOCK = ".workers.lock"
WORKERS_SECONDS = 60.0
"""How long a start waits for the workers of a former one, whose launcher was killed, to save and to end."""


class RunDirectory:
    """The files of one run. ``take`` must come before anything is written."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self._lock: IO[str] | None = None

    config = property(lambda self: self.path / "config.yaml")
    environment = property(lambda self: self.path / "env.json")
    status = property(lambda self: self.path / "status.json")
    metrics = property(lambda self: self.path / "metrics.jsonl")
    superseded = property(lambda self: self.path / "metrics.superseded.jsonl")
    events = property(lambda self: self.path / "events.jsonl")
    logs = property(lambda self: self.path / "logs")
    tensorboard = property(lambda self: self.path / "tensorboard")
    control = property(lambda self: self.path / "control.json")
    sums = property(lambda self: self.path / "sums.json")

    def take(self, *, fresh: bool) -> Path | None:
        """Create the directory and lock it for this job.

        With ``fresh`` a former run's directory is moved aside, never deleted; returns where to.

        Raises:
            UsageError: another job is using it.
            EnvironmentNotReady: it cannot be created or written.
        """
        try:
            self._acquire()
            moved = None
            if fresh and self.config.exists():
                moved = self._aside()
                self.release()
                self.path.rename(moved)
                self._acquire()
            self.logs.mkdir(exist_ok=True)
            return moved
        except OSError as error:
            raise EnvironmentNotReady(f"the run directory {self.path} cannot be used: {error.strerror}. Choose another "
                                      "with run.dir=PATH.") from None

    def _aside(self) -> Path:
        name = f"{self.path.name}.before-{time.strftime('%Y%m%d-%H%M%S')}"
        names = (self.path.with_name(name + more) for more in ("", *(f"-{number}" for number in range(2, 1000))))
        return next(path for path in names if not path.exists())

    def _acquire(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.path / ".lock", "a+")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "unknown"
            raise UsageError(f"the run directory {self.path} is in use by another job (pid {holder}). Wait for it, stop "
                             "it, or choose another with run.dir=PATH") from None
        self._wait_for_workers()
        self._lock.truncate(0)
        self._lock.write(f"{os.getpid()}\n")
        self._lock.flush()

    def _wait_for_workers(self) -> None:
        """A launcher that was killed may have left workers behind that are saving their last step."""
        deadline = time.monotonic() + WORKERS_SECONDS
        with open(self.path / WORKERS_LOCK, "a") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise UsageError(f"workers of a former start of the run {self.path} are still there after "
                                         f"{WORKERS_SECONDS:g} s. Look for processes named hvtrain-*, or choose another "
                                         "directory with run.dir=PATH") from None
                    time.sleep(0.05)

    def release(self) -> None:
        """Let others use the directory."""
        if self._lock is not None:
            self.control.unlink(missing_ok=True)
            self._lock.close()
            self._lock = None

    def starts(self) -> int:
        """How many times this run has been started."""
        try:
            with open(self.events, "rb") as file:
                return sum(line.startswith(b'{"event": "started"') for line in file)
        except OSError:
            return 0

    def announce(self, door: dict[str, Any]) -> None:
        """Write down, for this user's eyes only, where commands reach the running job."""
        self.control.unlink(missing_ok=True)
        file = os.open(self.control, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(file, "w") as out:
            json.dump(door, out)

    def rewind_metrics(self, step: int) -> int:
        """Move measurements of steps after ``step`` aside: they are about to be measured again.

        They go to metrics.superseded.jsonl. Returns how many there were.
        """
        if not self.metrics.exists():
            return 0
        keep, aside = [], []
        for line in self.metrics.read_text().splitlines():
            try:
                later = json.loads(line)["step"] > step
            except (ValueError, KeyError, TypeError):
                later = True  # a line cut short by a crash
            (aside if later else keep).append(line)
        if aside:
            with open(self.superseded, "a") as file:
                file.writelines(line + "\n" for line in aside)
            write_atomically(self.metrics, "".join(line + "\n" for line in keep))
        return len(aside)


def share(path: str | os.PathLike[str]) -> IO[str]:
    """Say that there are workers of this run, until the result is closed."""
    Path(path).mkdir(parents=True, exist_ok=True)
    lock = open(Path(path) / WORKERS_LOCK, "a")
    fcntl.flock(lock, fcntl.LOCK_SH)
    return lock


def unshare(lock: IO[str]) -> None:
    """There are no workers at the moment; :func:`share_again` says that there are."""
    fcntl.flock(lock, fcntl.LOCK_UN)


def share_again(lock: IO[str]) -> None:
    """Undo :func:`unshare`. Without effect while the next start of the run looks whether there are workers."""
    with suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)


def write_atomically(path: Path, text: str) -> None:
    """Replace ``path`` by ``text``; readers see the old or the new content, never half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    # Not through a link that somebody else has laid there, if the directory is not this user's alone.
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "w") as file:
        file.write(text)
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, json.dumps(value, indent=2, sort_keys=True) + "\n")
