"""Cutting a round: how a rank is woken at once, whatever it waits for."""

from __future__ import annotations

import ctypes

from hvtrain.errors import EnvironmentNotReady


class Cutter:
    """Cuts one round, and no other one, from any thread and at any time.

    The engine's library knows which sockets are its own and which round is the current one (edit "cut"): after the
    round's end, or in the next one, a cut does nothing. Construct it right before ``hvd.init()``.

    Raises EnvironmentNotReady where Horovod was built without our edits.
    """

    def __init__(self, library: ctypes.CDLL):
        try:
            begin, self._cut = library.horovod_round_begin, library.horovod_round_cut
        except AttributeError:
            raise EnvironmentNotReady("the installed Horovod is not this version of hvtrain's engine.",
                                      "hvtrain engine build") from None
        begin.restype, self._cut.argtypes = ctypes.c_int64, (ctypes.c_int64,)
        self._failure = getattr(library, "horovod_round_failure", None)  # edit "told"
        self._number = begin()

    def __call__(self) -> int:
        """Shut the round's sockets, and those that it still opens; returns how many were open."""
        return self._cut(self._number)

    def failure(self) -> str:
        """Why the last round could not be formed, as the engine tells it; "" where it does not."""
        if self._failure is None:
            return ""
        reason = ctypes.create_string_buffer(1024)
        self._failure(reason, ctypes.c_int64(len(reason)))
        return reason.value.decode(errors="replace")
