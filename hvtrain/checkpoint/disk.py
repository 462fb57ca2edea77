"""The few file operations that crash safety and hostile files need, each by directory descriptor."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import shutil
import stat
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

from hvtrain.errors import CheckpointDamaged

CHUNK = 4 << 20  # bytes hashed and then written or read at once: still in the cache for the second use
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: opening a FIFO that lies where a file should be must not wait for ever
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class HashedFile:
    """A new file that hashes what is written to it. ``commit`` makes it durable."""

    def __init__(self, directory: int, name: str):
        self._fd = os.open(name, _CREATE_FILE, 0o666, dir_fd=directory)
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes (a flat buffer)."""
        view = memoryview(data)
        for start in range(0, len(view), CHUNK):
            piece = view[start:start + CHUNK]
            self._hash.update(piece)
            self.size += len(piece)
            while piece:
                piece = piece[os.write(self._fd, piece):]

    def commit(self) -> str:
        """Flush to the disk; return the sha256 of the whole file in hex."""
        os.fsync(self._fd)
        return self._hash.hexdigest()

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._fd)


@contextmanager
def opened_directory(path: Path) -> Iterator[int]:
    """A descriptor of a real directory (a symlink as the last part is refused); OSError if there is none."""
    descriptor = os.open(path, _OPEN_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def opened_file(directory: int, name: str) -> Iterator[tuple[int, int]]:
    """(descriptor, size) of a regular file of ``directory``; CheckpointDamaged with the reason otherwise."""
    try:
        descriptor = os.open(name, _OPEN_FILE, dir_fd=directory)
    except OSError as error:
        reason = "is missing" if error.errno == errno.ENOENT else \
            "is a symbolic link" if error.errno == errno.ELOOP else f"cannot be opened: {error.strerror}"
        raise CheckpointDamaged(f"{name} {reason}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointDamaged(f"{name} is not a regular file")
        yield descriptor, status.st_size
    finally:
        os.close(descriptor)


def read_into(descriptor: int, target: memoryview) -> str:
    """Fill ``target`` from the descriptor's position on; the sha256 in hex of what was read."""
    digest, position = hashlib.sha256(), 0
    while position < len(target):
        count = _read(descriptor, target[position:position + CHUNK])
        if count == 0:
            raise CheckpointDamaged(f"ends after {position} bytes, expected {len(target)}")
        digest.update(target[position:position + count])
        position += count
    return digest.hexdigest()


def hash_file(descriptor: int, size: int) -> str:
    """The sha256 in hex of ``size`` bytes from the descriptor's position on, through one small buffer."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(min(CHUNK, size)))
    while size > 0:
        count = _read(descriptor, buffer[:size])
        if count == 0:
            raise CheckpointDamaged(f"ends {size} bytes too early")
        digest.update(buffer[:count])
        size -= count
    return digest.hexdigest()


def read_at(descriptor: int, count: int, position: int) -> bytes:
    """At most ``count`` (and CHUNK) bytes from ``position``, none at the end; else CheckpointDamaged."""
    try:
        return os.pread(descriptor, min(count, CHUNK), position)
    except OSError as error:
        raise CheckpointDamaged(f"cannot be read: {error.strerror}") from error


def read_all_at(descriptor: int, count: int, position: int) -> bytes:
    """``count`` bytes from ``position``; CheckpointDamaged if there are fewer."""
    pieces = bytearray()
    while len(pieces) < count:
        piece = read_at(descriptor, count - len(pieces), position + len(pieces))
        if not piece:
            raise CheckpointDamaged(f"ends after {position + len(pieces)} bytes, expected {position + count}")
        pieces += piece
    return bytes(pieces)


def _read(descriptor: int, target: memoryview) -> int:
    try:
        return os.readv(descriptor, [target])
    except OSError as error:
        raise CheckpointDamaged(f"cannot be read: {error.strerror}") from error


def sync_directory(directory: int | Path) -> None:
    """Make a directory's entries (creations, renames, removals) durable."""
    if isinstance(directory, Path):
        with opened_directory(directory.resolve()) as descriptor:
            return sync_directory(descriptor)
    try:
        os.fsync(directory)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot sync directories
            raise


def make_directories(path: Path) -> None:
    """Create ``path`` and what is missing above it, durably."""
    missing = []
    current = path
    while not current.exists():
        missing.append(current)
        current = current.parent
    for directory in reversed(missing):
        directory.mkdir(exist_ok=True)
        sync_directory(directory.parent)


def exchange(one: Path, other: Path) -> bool:
    """Swap two names in one atomic step. False where the system or the file system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    at_cwd, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    # Any failure means "no": the caller's own way without it meets, and reports, whatever else is wrong.
    return libc.renameat2(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), swap) == 0


def remove_tree(path: Path) -> None:
    """Delete a directory with all in it, or a file or link itself; nothing happens if it is gone."""
    try:
        if stat.S_ISDIR(os.lstat(path).st_mode):
            shutil.rmtree(path)
        else:
            os.unlink(path)
    except FileNotFoundError:
        pass


def free_bytes(path: Path) -> int | None:
    """Bytes an ordinary user may still write below ``path`` (or its nearest parent); None if unknown."""
    for place in (path, *path.parents):
        try:
            status = os.statvfs(place)
        except OSError:
            continue
        return status.f_bavail * status.f_frsize
    return None


def human_size(count: int) -> str:
    """A number of bytes for people, e.g. "1.3 GB" (powers of ten)."""
    value = float(count)
    for unit in ("bytes", "KB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            return f"{count} bytes" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError("unreachable")
