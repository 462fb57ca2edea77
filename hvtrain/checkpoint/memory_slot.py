"""One block of shared memory that only grows; running out of memory is an error, never SIGBUS."""

from __future__ import annotations

import mmap
import os

from hvtrain.checkpoint.room import available
from hvtrain.errors import EnvironmentNotReady

GRAIN = 1 << 20  # bytes by which a block grows at least: outlines change by a few bytes, mappings then stay
_PIECE = 64 << 20  # allocated or mapped by one system call
_COPIED = 8 << 20  # copied without letting go of the interpreter lock: under 1 ms
_POPULATE_READ = 22  # MADV_POPULATE_READ (Linux 5.14); the mmap module has no name for it


class MemorySlot:
    """A block behind the descriptor of a memory file. Nothing is mapped until it is needed.

    Every page below the file's size is allocated: the size only moves together with ``posix_fallocate``. That is what
    makes storing through the mapping safe.
    """

    def __init__(self, descriptor: int):
        self._fd = descriptor
        self._mapping: mmap.mmap | None = None
        self._view = memoryview(b"")

    def prepare(self, size: int) -> None:
        """Have at least ``size`` bytes that can be stored to.

        Raises:
            EnvironmentNotReady: there is not so much memory; the block is as it was.
        """
        if size <= len(self._view):
            return
        size = -(-size // GRAIN) * GRAIN
        have = os.fstat(self._fd).st_size  # a predecessor may have grown it
        if size > have:
            self._grow(have, size)
        try:
            mapping = mmap.mmap(self._fd, size)
        except OSError as error:
            raise _no_room(size, str(error)) from None
        try:
            # Faults one by one cost four times the copy itself in every process that is new to the block: 45 ms for
            # 100 MB, the copy 11. "Read" maps many pages at once, and writable, as nothing has to be reserved for a
            # write to memory: 10 ms. MADV_POPULATE_WRITE goes page by page: 24 ms.
            for start in range(0, size, _PIECE):
                mapping.madvise(_POPULATE_READ, start, min(_PIECE, size - start))
        except OSError:
            pass  # an older kernel; then the first copy takes the faults
        self.close()
        self._mapping, self._view = mapping, memoryview(mapping)

    def fill(self, begin: int, data: memoryview | bytes) -> None:
        """Copy flat bytes to ``begin``; :meth:`prepare` has made the room."""
        for start in range(0, len(data), _COPIED):
            piece = data[start:start + _COPIED]
            self._view[begin + start:begin + start + len(piece)] = piece

    def view(self, size: int) -> memoryview | None:
        """The first ``size`` bytes, read-only, in a mapping of its own that lives as long as views of it do.

        None if the block does not have so many, or they cannot be mapped.
        """
        if size == 0:
            return memoryview(b"")
        if size > os.fstat(self._fd).st_size:
            return None
        try:
            return memoryview(mmap.mmap(self._fd, size, access=mmap.ACCESS_READ))
        except OSError:
            return None

    def close(self) -> None:
        """Give the mapping up; the block stays."""
        self._view.release()
        if self._mapping is not None:
            self._mapping.close()
        self._mapping, self._view = None, memoryview(b"")

    def _grow(self, have: int, size: int) -> None:
        free = available()
        if size - have > free:
            raise _no_room(size, f"{_mib(free)} are free, {_mib(size - have)} more are needed")
        try:
            for start in range(have, size, _PIECE):
                os.posix_fallocate(self._fd, start, min(_PIECE, size - start))
        except OSError as error:
            os.ftruncate(self._fd, have)
            raise _no_room(size, os.strerror(error.errno) if error.errno else str(error)) from None


def _no_room(size: int, why: str) -> EnvironmentNotReady:
    return EnvironmentNotReady(
        f"A snapshot of the training state takes {_mib(size)} of this host's memory (two are kept), and there is no "
        f"room for it: {why}. The snapshot before is intact. Free memory, or train without snapshots.",
        "elastic.snapshot_every=null")


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.0f} MiB"
