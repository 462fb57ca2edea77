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
        self._number = begin()

    def __call__(self) -> int:
        """Shut the round's sockets, and those that it still opens; returns how many were open."""
        return self._cut(self._number)
