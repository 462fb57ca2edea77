"""What the engine's own all-reduce offers beside Horovod's interface (edit "coded"), by ctypes."""

from __future__ import annotations

import ctypes
import os
import weakref
from dataclasses import dataclass
from typing import Callable

from hvtrain.errors import EnvironmentNotReady

ROOM = 4096
"""Spans that are fetched at once."""


def coded_name(name: str, codec: str) -> str:
    """The tensor name that tells the engine of ``codec``; the same on all ranks, or they would wait for each other."""
    return f"hvtrain_coded_{codec}.{name}"


@dataclass(frozen=True)
class Span:
    """One reduction: when it was under way (seconds of ``time.monotonic``), what of it went into the codec."""

    name: str
    begin: float
    end: float
    codec: float
    bytes: int


class _Span(ctypes.Structure):
    _fields_ = [("begin", ctypes.c_int64), ("end", ctypes.c_int64), ("codec", ctypes.c_int64),
                ("bytes", ctypes.c_int64), ("name", ctypes.c_char * 96)]


def shared_memory(library: ctypes.CDLL, size: int) -> ctypes.Array | None:
    """``size`` zeroed bytes that neighbours can read, until nobody refers to them; None if there are none.

    What lies there is summed without being copied first; elsewhere it is copied, and nothing else changes.
    """
    if not hasattr(library, "horovod_shared_allocate") or not size:
        return None
    allocate, release = library.horovod_shared_allocate, library.horovod_shared_release
    allocate.argtypes, allocate.restype = (ctypes.c_int64,), ctypes.c_void_p
    release.argtypes, release.restype = (ctypes.c_void_p,), None
    address = allocate(size)
    if not address:
        return None
    kind = type("SharedBytes", (ctypes.c_uint8 * size,), {})  # of a class of ours, so that it can be referred to weakly
    memory = kind.from_address(address)
    weakref.finalize(memory, _release, release, address, os.getpid()).atexit = False
    return memory


def _release(release: Callable[[int], None], address: int, owner: int) -> None:
    if os.getpid() == owner:  # a forked child has only inherited it
        release(address)


class Reductions:
    """Raises EnvironmentNotReady where Horovod was built without our edits, or by another version of hvtrain."""

    def __init__(self, library: ctypes.CDLL):
        try:
            self._seed, self._record, self._take, self._busy = (
                library.horovod_coded_seed, library.horovod_spans_record, library.horovod_spans_take,
                library.horovod_reductions_busy)
        except AttributeError:
            raise EnvironmentNotReady("the installed Horovod is not this version of hvtrain's engine.",
                                      "hvtrain engine build") from None
        self._seed.argtypes, self._seed.restype = (ctypes.c_uint64,), None
        self._record.argtypes, self._record.restype = (ctypes.c_int,), None
        self._take.argtypes, self._take.restype = (ctypes.POINTER(_Span), ctypes.c_int64), ctypes.c_int64
        self._busy.argtypes, self._busy.restype = (), ctypes.c_int64

    def seed(self, seed: int) -> None:
        """Seed the noise of all reductions that start from now on."""
        self._seed(seed & (2**64 - 1))

    def seconds(self) -> float:
        """Seconds that reductions have been under way so far in this process."""
        return self._busy() * 1e-9

    def record(self, on: bool) -> None:
        """Keep a span of every reduction from now on, or stop and forget them."""
        self._record(on)

    def spans(self) -> list[Span]:
        """The spans since the last call, oldest first."""
        found: list[Span] = []
        room = (_Span * ROOM)()
        while count := self._take(room, ROOM):
            found += [Span(s.name.decode(errors="replace"), s.begin * 1e-9, s.end * 1e-9, s.codec * 1e-9, s.bytes)
                      for s in room[:count]]
        return found
