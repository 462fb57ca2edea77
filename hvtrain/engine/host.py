"""Sums and broadcasts of plain memory by the engine (edit "host"), by ctypes."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np

from hvtrain.engine.reductions import shared_memory
from hvtrain.errors import EnvironmentNotReady

_TYPES = {"uint8": 0, "int8": 1, "uint16": 2, "int16": 3, "int32": 4, "int64": 5, "float16": 6, "float32": 7,
          "float64": 8, "bool": 9}  # Horovod 0.28.1, common/message.h
_DONE, _UNKNOWN = 1, -2


class OperationFailed(Exception):
    """The engine could not do an operation, or would not take it; the message says why."""


@dataclass(frozen=True)
class Operation:
    """An operation under way. ``array`` is in use until it has been waited for, or the round is over."""

    ticket: int
    array: np.ndarray


class HostOperations:
    """Starts and ends operations on NumPy arrays, in place. All ranks start those of one name once each.

    Raises EnvironmentNotReady where Horovod was built without our edits, or by another version of hvtrain.
    """

    def __init__(self, library: ctypes.CDLL):
        try:
            self._sum, self._broadcast, self._wait = (
                library.horovod_host_sum, library.horovod_host_broadcast, library.horovod_host_wait)
        except AttributeError:
            raise EnvironmentNotReady("the installed Horovod is not this version of hvtrain's engine.",
                                      "hvtrain engine build") from None
        memory = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int)
        self._sum.argtypes, self._sum.restype = (*memory, ctypes.c_char_p), ctypes.c_int64
        self._broadcast.argtypes, self._broadcast.restype = (*memory, ctypes.c_int, ctypes.c_char_p), ctypes.c_int64
        self._wait.argtypes, self._wait.restype = (
            (ctypes.c_int64, ctypes.c_int64, ctypes.c_char_p, ctypes.c_int64), ctypes.c_int)
        self._reason = ctypes.create_string_buffer(1000)

    def sum(self, array: np.ndarray, name: str) -> Operation:
        """Start to add ``array`` up over all ranks."""
        return Operation(self._sum(*_memory(array), name.encode()), array)

    def broadcast(self, array: np.ndarray, root: int, name: str) -> Operation:
        """Start to overwrite ``array`` by that of rank ``root``."""
        return Operation(self._broadcast(*_memory(array), root, name.encode()), array)

    def wait(self, operation: Operation, seconds: float) -> bool:
        """Whether ``operation`` ends within ``seconds``. Meanwhile Python's lock is free. To be called by one thread.

        Raises:
            OperationFailed: it has failed.
        """
        found = self._wait(operation.ticket, int(seconds * 1e6), self._reason, len(self._reason))
        if found >= 0:
            return found == _DONE
        raise OperationFailed("it has been waited for already" if found == _UNKNOWN
                              else self._reason.value.decode(errors="replace"))


def _memory(array: np.ndarray) -> tuple[int, int, int]:
    assert array.flags.c_contiguous and array.flags.writeable, "operations are in place"
    return array.ctypes.data, array.size, _TYPES[array.dtype.name]


def zeros(library: ctypes.CDLL | None, elements: int) -> np.ndarray:
    """A float32 vector, in memory that neighbours can read if ``library`` is an engine that offers it."""
    memory = shared_memory(library, 4 * elements) if library is not None else None
    return np.zeros(elements, np.float32) if memory is None else np.frombuffer(memory, np.float32)
