"""Directories that a checkpoint is built in, and how those of dead writers are told from live ones.

A writer holds a ``flock`` on its temporary directory for as long as it lives; the kernel lets go of it
however the process ends, and the lock is right across containers and, where the file system carries locks,
across hosts. The name also says who made it (machine and boot, pid, start time), for file systems without
locks and for the instant between creating and locking. A directory is abandoned only if nothing speaks for
its writer:


    lock held by someone      -> live
    owner's process runs here -> live
    lock free                 -> abandoned
    no locks here, owner from this boot and gone -> abandoned
    no locks here, owner unknown                 -> left alone, and said in the log
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import re
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path

from hvtrain.checkpoint.disk import opened_directory, remove_tree, sync_directory

PREFIX, TRASH = ".tmp-", ".trash-"
_NAME = re.compile(r"\.tmp-\d+-(?P<machine>[0-9a-f]{12})-(?P<pid>\d+)-(?P<start>\d+)-[0-9a-f]{8}")
_NO_LOCKS = {errno.EBADF, errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS}
_log = logging.getLogger(__name__)


@dataclass
class Workspace:
    """A locked temporary directory: its path and descriptor. ``close`` lets go of the lock."""

    path: Path
    descriptor: int

    def close(self) -> None:
        """Release the lock and the descriptor; the directory itself stays."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def create(parent: Path, step: int) -> Workspace:
    """Make and lock a new temporary directory for ``step`` in ``parent``; OSError as from mkdir."""
    while True:
        owner = f"{_machine()}-{os.getpid()}-{_start_time(os.getpid())}"
        path = parent / f"{PREFIX}{step:08d}-{owner}-{secrets.token_hex(4)}"
        os.mkdir(path)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:  # swept by another host before it was locked: try again
            continue
        if _lock(descriptor) is not False and _same(path, descriptor):
            return Workspace(path, descriptor)
        os.close(descriptor)


def sweep(parent: Path) -> list[str]:
    """Delete abandoned temporary directories and half-removed trash in ``parent``; the names deleted."""
    removed = []
    for path in sorted(parent.iterdir()):
        if path.name.startswith(TRASH):
            remove_tree(path)
            removed.append(path.name)
        elif path.name.startswith(PREFIX) and _take_abandoned(path):
            removed.append(path.name)
    return removed


def discard(path: Path) -> None:
    """Remove a directory in one atomic step for everyone who looks; FileNotFoundError if it is not there."""
    trash = path.parent / f"{TRASH}{path.name.lstrip('.')}-{secrets.token_hex(4)}"
    os.rename(path, trash)
    # Durable before the first file goes, so that no crash brings back a directory with holes in it.
    sync_directory(path.parent)
    remove_tree(trash)


def _take_abandoned(path: Path) -> bool:
    try:
        with opened_directory(path) as descriptor:
            owner = _NAME.fullmatch(path.name)
            local = owner is not None and owner["machine"] == _machine()
            if local and _start_time(int(owner["pid"])) == int(owner["start"]):
                return False
            lock = _lock(descriptor)
            if lock is False:
                return False
            if lock is None and not local:
                _log.info("%s may belong to a writer on another machine and is left alone; delete it by hand "
                          "once no job writes here.", path)
                return False
            # Still holding the lock: a writer that was just born loses this race, sees it, and starts again.
            discard(path)
            return True
    except FileNotFoundError:  # another process was quicker
        return False
    except NotADirectoryError:
        _log.warning("%s is not a directory of ours and is left alone.", path)
        return False
    except OSError as error:
        _log.warning("%s cannot be cleaned up (%s) and is left alone.", path, error.strerror)
        return False


def _lock(descriptor: int) -> bool | None:
    """True: locked for us. False: someone else holds it. None: there are no locks here."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


def _same(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _machine() -> str:
    """Twelve hex digits for this boot of this machine and its pid namespace (a container has its own)."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        boot, namespace = "", 0
    text = f"{boot or socket.gethostname()}/{namespace}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _start_time(pid: int) -> int:
    """When the process started, in clock ticks after boot; 0 if it runs but that is unknown, -1 if gone."""
    try:
        # the second field is the command in brackets and may itself hold brackets and spaces
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return -1 if fields[0] in ("Z", "X") else int(fields[19])
    except (OSError, IndexError, ValueError):
        pass
    if os.path.isdir("/proc/self"):
        return -1
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return -1
    except PermissionError:
        pass
    return 0
