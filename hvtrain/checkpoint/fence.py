"""The fence of a checkpoint directory: a part of the job that was given up writes nothing over the work of the others.

::

    round 5   h1 h2 | h3 h4    the network parts; rank 0 is on h3, and about to write step 40
    round 6   h1 h2            rank 0 of round 6 raises the fence to 6, and only then looks what there is to go on from
              h3               is to name its finished directory step-00000040: the fence is at 6 > 5, so it does not

What round 5 has named before the fence was raised is seen by round 6; afterwards it names nothing. Who looks at the
fence and names a directory does both while it holds a lock on the file ``.fence`` (flock: across hosts where the disk
has such locks; elsewhere a moment remains between the two). The file says which job, by a hash of its token and its
start, and which round. Another start of the run is another job: its first round takes the fence, and the former start
has lost it for good.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator

from hvtrain.errors import GivenUp, RoundBroken, WorkersLost

log = logging.getLogger(__name__)

NAME = ".fence"
LOCK_SECONDS = 2.0
"""Nobody holds the lock for so long who is alive; one that stands still is not waited for any longer."""


def job_id(token: str, start: int) -> str:
    """What the fence calls a start of the run: starts that are given the same token count their rounds anew, too."""
    return hashlib.sha256(f"hvtrain fence|{start}|{token}".encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Mark:
    """What stands in the file: up to which round of which job the past is closed."""

    job: str
    round: int

    def to_bytes(self) -> bytes:  # always as long, so that it is replaced by one write
        return f"{self.job:16.16} {self.round:012d}\n".encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Mark | None:
        """None for anything else."""
        job, _, number = data.decode("ascii", "replace").partition(" ")
        return cls(job, int(number)) if len(job) == 16 and number.strip().isdigit() else None


class Fence:
    """The fence of ``directory``, for a worker of the job with this id."""

    def __init__(self, directory: str | os.PathLike[str], job: str):
        self._path, self._job = Path(directory) / NAME, job

    def raise_to(self, round: int, *, first: bool) -> None:
        """Close the past before ``round``; to be called by its rank 0 before it looks what there is to go on from.

        ``first``: no round of the job has come so far before, so it takes the fence from whoever had it.

        Raises:
            RoundBroken: the job is in a later round already.
            WorkersLost: another start of the run has the fence.
            OSError: the file cannot be written.
        """
        with self._locked() as file:
            mark = self._read(file)
            ours = mark is not None and mark.job == self._job
            if mark is not None and not ours and not first:
                raise WorkersLost(f"another job writes its checkpoints to {self._path.parent} by now: another start of "
                                  "this run, or one that was given the same checkpoint.dir")
            if mark is not None and ours and mark.round > round:
                raise RoundBroken(f"the job is in round {mark.round} already, without this worker")
            os.pwrite(file, Mark(self._job, round).to_bytes(), 0)

    @contextmanager
    def passage(self, round: int) -> Iterator[None]:
        """Within this context a member of ``round`` may name what it has written.

        Raises:
            GivenUp: the job has gone on without it.
        """
        with self._locked() as file:
            mark = self._read(file)
            if mark is not None and (mark.job != self._job or mark.round > round):
                raise GivenUp(f"a checkpoint of round {round} is not kept, because the job has gone on without it "
                              f"(see {self._path}).")
            yield

    @contextmanager
    def _locked(self) -> Iterator[int]:
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            deadline = time.monotonic() + LOCK_SECONDS
            while not _lock(file):
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


def _lock(file: int) -> bool:
    """Whether the lock is ours; also where the disk has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EACCES, errno.EINTR)
    return True
