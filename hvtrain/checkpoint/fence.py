"""The fence of a checkpoint directory: a part of the job that was given up writes nothing over the work of the others.

::

    round 5   h1 h2 | h3 h4    the network parts; rank 0 is on h3, and about to write step 40
    round 6   h1 h2            rank 0 of round 6 raises the fence to 6, and only then looks what there is to go on from
              h3               is to name its finished directory step-00000040: the fence is at 6 > 5, so it does not

What round 5 has named before the fence was raised is seen by round 6; afterwards it names nothing. Who looks at the
fence and names a directory does both while it holds a lock on the file ``.fence`` (flock: across hosts where the disk
has such locks; elsewhere a moment remains between the two). The file says which job and which round. Each start of a run
is a job of its own, named by when its coordinator began: its first round takes the fence, and former starts have lost it
for good. What a former start has left on a disk that not all hosts share is in nobody's way.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import secrets
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator

from hvtrain.errors import CheckpointWriteFailed, GivenUp, RoundBroken, WorkersLost

log = logging.getLogger(__name__)

NAME = ".fence"
LOCK_SECONDS = 2.0
"""Nobody holds the lock for so long who is alive; one that stands still is not waited for any longer."""


JOB_LENGTH = 29


def new_job() -> str:
    """What the fence is to call a job that begins now: later ones have greater names."""
    return f"{time.time_ns():020d}-{secrets.token_hex(4)}"


@dataclass(frozen=True)
class Mark:
    """What stands in the file: up to which round of which job the past is closed."""

    job: str
    round: int

    def to_bytes(self) -> bytes:  # always as long, so that it is replaced by one write
        return f"{self.job:{JOB_LENGTH}.{JOB_LENGTH}} {self.round:012d}\n".encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Mark | None:
        """None for anything else."""
        job, _, number = data.decode("ascii", "replace").partition(" ")
        return cls(job, int(number)) if len(job) == JOB_LENGTH and number.strip().isdigit() else None


class Fence:
    """The fence of ``directory``. ``job``: the one that asks (:func:`new_job`)."""

    def __init__(self, directory: str | os.PathLike[str]):
        self._path = Path(directory) / NAME

    def raise_to(self, job: str, round: int, *, first: bool) -> None:
        """Close the past before ``round``; to be called by its rank 0 before it looks what there is to go on from.

        ``first``: no round of the job has come so far before, so it takes the fence from whoever had it.

        Raises:
            RoundBroken: the job is in a later round already.
            WorkersLost: a later start of the run has the fence.
            OSError: the file cannot be written.
        """
        with self._locked() as file:
            mark = self._read(file)
            if mark is not None and mark.job > job and not first:
                raise WorkersLost(self._taken())
            if mark is not None and mark.job == job and mark.round > round:
                raise RoundBroken(f"the job is in round {mark.round} already, without this worker")
            os.pwrite(file, Mark(job, round).to_bytes(), 0)

    @contextmanager
    def passage(self, job: str, round: int) -> Iterator[None]:
        """Within this context a member of ``round`` may name what it has written.

        Raises:
            GivenUp: the job has gone on without it.
            CheckpointWriteFailed: another job writes there by now.
        """
        with self._locked() as file:
            mark = self._read(file)
            if mark is not None and mark.job > job:
                raise CheckpointWriteFailed(self._taken())
            if mark is not None and mark.job == job and mark.round > round:
                raise GivenUp(f"a checkpoint of round {round} is not kept, because the job has gone on without it "
                              f"(see {self._path}).")
            yield

    def _taken(self) -> str:
        return (f"another job writes its checkpoints to {self._path.parent} by now: another start of this run, or one that "
                "was given the same checkpoint.dir")

    @contextmanager
    def _locked(self) -> Iterator[int]:
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            deadline = time.monotonic() + LOCK_SECONDS
            while not lock(file):
                if time.monotonic() > deadline:
                    log.warning("somebody has held %s for %g s, and is not waited for any longer", self._path,
                                LOCK_SECONDS)
                    break
                time.sleep(0.005)
            yield file
        finally:
            os.close(file)

    @staticmethod
    def _read(file: int) -> Mark | None:
        return Mark.from_bytes(os.pread(file, len(Mark("", 0).to_bytes()), 0))


def lock(file: int) -> bool:
    """Whether the lock on this open file is ours now; also where the disk has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EACCES, errno.EINTR)
    return True
