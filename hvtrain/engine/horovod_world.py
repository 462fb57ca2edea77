"""A round of Horovod processes: collective operations on NumPy arrays, with errors of ours."""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from hvtrain.engine import roundsecret
from hvtrain.engine.cutting import Cutter
from hvtrain.engine.host import HostOperations, Operation, OperationFailed
from hvtrain.engine.reductions import Reductions, Span, coded_name
from hvtrain.engine.world import Place, export
from hvtrain.errors import RoundBroken, Unanswered

SLICE = 0.05
"""Seconds after which a wait looks whether a signal has come; the whole is bounded by ``comm.timeout``."""


def _given(name: str) -> str:
    """The name a sum was started with, from Horovod's own for it: allreduce.hvtrain_coded_fp16.grad.3 -> grad.3."""
    return re.sub(r"^allreduce\.(hvtrain_coded_[a-z0-9]+\.)?", "", name)


class HorovodWorld:
    """Fulfils :class:`hvtrain.engine.world.World`. Construct it on all members at once; it blocks until all are there.

    Args:
        hvd: Horovod's module for a framework, which brings ``init`` and ``shutdown``.
        library: its library.
        cut: the round's own.

    Raises RoundBroken if the round cannot be formed.
    """

    def __init__(self, place: Place, cut: Cutter, hvd: Any, library: Any):
        from horovod.common.exceptions import HorovodInternalError

        self._hvd, self._lost = hvd, HorovodInternalError
        self.rank, self.size, self.local_rank = place.rank, place.size, place.local_rank
        self.timeout, self.waiting, self._cut = place.timeout, False, cut
        self._operations, self._reductions = HostOperations(library), Reductions(library)
        self._under_way: dict[int, Operation] = {}  # the engine writes into their memory
        export(place)
        try:
            hvd.init()
        except (ValueError, HorovodInternalError) as error:  # the engine's edits turn an abort into ValueError
            why = f"{error} {cut.failure()}".rstrip()
            raise RoundBroken(f"the round of {place.size} could not be formed: {why}") from None
        finally:
            os.environ.pop(roundsecret.VARIABLE, None)

    def sum_async(self, tensor: np.ndarray, name: str, codec: str = "none") -> Operation:
        return self._begun(self._operations.sum(tensor, f"allreduce.{coded_name(name, codec)}"))

    def noise(self, seed: int) -> None:
        self._reductions.seed(seed)

    def reduced(self) -> float:
        return self._reductions.seconds()

    def record(self, on: bool) -> None:
        self._reductions.record(on)

    def spans(self) -> list[Span]:
        return [replace(span, name=_given(span.name)) for span in self._reductions.spans()]

    def broadcast(self, tensor: np.ndarray, root: int, name: str) -> None:
        self.wait(self._begun(self._operations.broadcast(tensor, root, f"broadcast.{name}")))

    def wait(self, handle: Any) -> None:
        self.waiting = True
        deadline = time.monotonic() + self.timeout
        try:
            while not self._ended(handle, SLICE):
                if time.monotonic() > deadline:  # Horovod itself waits for a rank that does not come for ever
                    raise Unanswered(
                        f"another rank has not joined a collective operation for comm.timeout ({self.timeout:g} s): it "
                        "hangs in user code, or is that much slower. The logs of the other ranks may tell; a larger "
                        "comm.timeout waits longer")
        finally:
            self.waiting = False

    def cut(self) -> int:
        return self._cut()

    def close(self) -> None:
        self._hvd.shutdown()
        for operation in list(self._under_way.values()):  # they have ended; the engine is to forget them, too
            with suppress(RoundBroken):
                self._ended(operation, 0)

    def _begun(self, operation: Operation) -> Operation:
        self._under_way[operation.ticket] = operation
        return operation

    def _ended(self, handle: Any, seconds: float) -> bool:
        """Whether the operation ends within ``seconds``. Raises RoundBroken if it has failed."""
        try:
            ended = self._operations.wait(handle, seconds)
        except OperationFailed as error:
            self._under_way.pop(handle.ticket, None)
            raise RoundBroken(str(error)) from None
        if ended:
            self._under_way.pop(handle.ticket, None)
        return ended
