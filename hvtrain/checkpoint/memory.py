"""The last snapshot of a job's state, in memory that outlives the workers.

Three memory files (``memfd_create``): no name in any file system, so nothing is left behind when all processes that
hold their descriptors are gone.

::

    header  | magic | record of block 0 | record of block 1 | committed[0..255] |     one page
    block 0 | tensors ... | JSON: outline, state |                                    grows, never shrinks
    block 1 | tensors ... | JSON: outline, state |

A write takes the block that is *not* the newest:  record := nothing -> tensors -> JSON -> record := whole.
The newest snapshot is not touched by it, so a writer may be killed anywhere in that.

Why the tensors carry no checksum: zlib's crc32 runs at 2.9 GB/s where the copy itself runs at 9 (100 MB, measured), so
it would make a snapshot take four times as long; and the record is stored by a system call of its own after everything
else, which a killed process cannot have made before. The record and the JSON, being small, are checked.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import zlib
from dataclasses import dataclass
from typing import Any, Mapping, Sequence

from hvtrain.checkpoint.blob import Blob
from hvtrain.checkpoint.memory_slot import MemorySlot
from hvtrain.checkpoint.outline import Outline
from hvtrain.checkpoint.snapshot import plain
from hvtrain.errors import EnvironmentNotReady, ProtocolError, UsageError

_MAGIC = b"hvtrain-memory/1"
_PAGE = 4096
_RECORD = struct.Struct("<QqQQI")  # number of the write, step, bytes of tensors, bytes of JSON, crc32 of the JSON
_CHECK = struct.Struct("<I")  # crc32 of the record
_RECORD_SIZE = _RECORD.size + _CHECK.size
_RECORD_AT = (64, 128)
_NOTHING = bytes(_RECORD_SIZE)  # its checksum does not fit
_CELLS_AT, CELLS = 2048, 256
_STATE_BYTES = 1 << 20  # what is reserved for JSON state; more than that is had when it comes


@dataclass(frozen=True)
class MemorySnapshot:
    """What :meth:`SharedSnapshots.read` found. The tensors are read-only views of the shared memory: good until
    the write after the next one, so restore from them, or copy them, before training goes on."""

    step: int
    groups: dict[str, dict[str, Blob]]
    state: dict[str, Any]


@dataclass(frozen=True)
class _Record:
    slot: int
    number: int
    step: int
    tensor_bytes: int
    json_bytes: int
    json_check: int


class SharedSnapshots:
    """The shared memory of one job on one host; see the module. Made by the agent, held by all of its workers.

    One worker writes at a time (the host's lowest); who comes after a killed one simply writes on. Any process may
    read, and store what is committed.
    """

    def __init__(self, fds: Sequence[int]):
        self._fds = tuple(fds)
        self._header = mmap.mmap(self._fds[0], _PAGE)
        # Native 64-bit stores, so that a reader in another process never sees half of one.
        self._cells = memoryview(self._header)[_CELLS_AT:_CELLS_AT + 8 * CELLS].cast("q")
        self._slots = tuple(MemorySlot(fd) for fd in self._fds[1:])

    @classmethod
    def create(cls) -> SharedSnapshots:
        """New, empty shared memory: one page so far.

        Raises:
            EnvironmentNotReady: this system has no memory files (they are Linux's), or no page to spare.
        """
        fds: list[int] = []
        try:
            for part in ("header", "0", "1"):
                fds.append(os.memfd_create(f"hvtrain-{part}"))
            os.posix_fallocate(fds[0], 0, _PAGE)
            os.pwrite(fds[0], _MAGIC, 0)
            return cls(fds)
        except (OSError, AttributeError) as error:
            for fd in fds:
                os.close(fd)
            raise EnvironmentNotReady(f"No shared memory for snapshots of the training state: {error}. Train without "
                                      "them.", "elastic.snapshot_every=null") from None

    @classmethod
    def attach(cls, fds: Sequence[int]) -> SharedSnapshots:
        """The shared memory behind descriptors that another process's :attr:`fds` gave, inherited under the same
        numbers (``pass_fds``). Takes them over. A forked process needs no attach: it has the object.

        Raises:
            UsageError: they are not such descriptors.
        """
        try:
            if len(fds) == 3 and os.pread(fds[0], len(_MAGIC), 0) == _MAGIC and os.fstat(fds[0]).st_size == _PAGE:
                for fd in fds:
                    os.set_inheritable(fd, False)
                return cls(fds)
        except OSError:
            pass
        raise UsageError(f"Expected the 3 descriptors of SharedSnapshots.fds, inherited by this process; got "
                         f"{list(fds)}.")

    @property
    def fds(self) -> tuple[int, ...]:
        """The descriptors, to hand to a process that is spawned (``pass_fds``); others do not inherit them."""
        return self._fds

    def reserve(self, groups: Mapping[str, Mapping[str, Blob]]) -> None:
        """Allocate and map what snapshots of such tensors will take, so that the first writes of this process cost no
        more than the later ones. Keeps what is there.

        Raises:
            EnvironmentNotReady: there is not enough memory.
        """
        outline = Outline.of(groups)
        for slot in self._slots:
            slot.prepare(outline.nbytes + len(json.dumps(outline.to_json())) + _STATE_BYTES)

    def write(self, step: int, groups: Mapping[str, Mapping[str, Blob]], state: Mapping[str, Any]) -> None:
        """Keep these tensors (copied once) and this JSON state as the newest snapshot, in place of the older one.

        Raises:
            EnvironmentNotReady: there is not enough memory; what was kept before is intact.
            UserCodeError: JSON cannot hold the state.
        """
        outline = Outline.of(groups)
        text = json.dumps({"outline": outline.to_json(), "state": plain(state)}, separators=(",", ":")).encode()
        newest = next(iter(self._records()), None)
        target = 0 if newest is None else 1 - newest.slot
        slot = self._slots[target]
        slot.prepare(outline.nbytes + len(text))
        # These stores must become visible in this order. x86 keeps it by itself; on others the system calls around the
        # record do, which take and let go of the file's lock.
        os.pwrite(self._fds[0], _NOTHING, _RECORD_AT[target])
        blobs = (blob for group in groups.values() for blob in group.values())
        for place, blob in zip(outline.places, blobs):
            slot.fill(place.begin, blob.data)
        slot.fill(outline.nbytes, text)
        record = _RECORD.pack(newest.number + 1 if newest else 1, step, outline.nbytes, len(text), zlib.crc32(text))
        os.pwrite(self._fds[0], record + _CHECK.pack(zlib.crc32(record)), _RECORD_AT[target])

    def newest(self) -> int | None:
        """The step of the newest whole snapshot, None if there is none. Costs microseconds."""
        return next((record.step for record in self._records()), None)

    def read(self) -> MemorySnapshot | None:
        """The newest whole snapshot, None if there is none. Copies no tensor, see :class:`MemorySnapshot`."""
        for record in self._records():
            block = self._slots[record.slot].view(record.tensor_bytes + record.json_bytes)
            if block is None or zlib.crc32(block[record.tensor_bytes:]) != record.json_check:
                continue  # a live writer has taken the block since; the other one is the newest now
            try:
                content = json.loads(bytes(block[record.tensor_bytes:]))
                groups = Outline.from_json(content["outline"]).blobs(block[:record.tensor_bytes])
            except (ValueError, KeyError, TypeError, ProtocolError):
                continue
            return MemorySnapshot(record.step, groups, content["state"])
        return None

    def commit(self, step: int, local_rank: int = 0) -> None:
        """Say that ``step`` is complete. ``local_rank``, below 256, must not be used by two processes at once."""
        if step > self._cells[local_rank]:
            self._cells[local_rank] = step

    @property
    def committed(self) -> int:
        """The highest step that any worker of this host has ever called complete; 0 before the first."""
        return max(self._cells)

    def close(self) -> None:
        """Give the descriptors and mappings of this process up; views that :meth:`read` gave stay good."""
        for slot in self._slots:
            slot.close()
        self._cells.release()
        self._header.close()
        for fd in self._fds:
            os.close(fd)
        self._fds = ()

    def _records(self) -> list[_Record]:
        """The records of whole snapshots, newest first."""
        found = []
        for slot, at in enumerate(_RECORD_AT):
            data = os.pread(self._fds[0], _RECORD_SIZE, at)
            if zlib.crc32(data[:_RECORD.size]) == _CHECK.unpack(data[_RECORD.size:])[0]:
                found.append(_Record(slot, *_RECORD.unpack(data[:_RECORD.size])))
        return sorted(found, key=lambda record: -record.number)
