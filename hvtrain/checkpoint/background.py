"""Write checkpoints beside the training, one at a time."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import nullcontext
from typing import Callable, ContextManager

from hvtrain.checkpoint.policy import Retention
from hvtrain.checkpoint.snapshot import Snapshot
from hvtrain.checkpoint.store import Store
from hvtrain.checkpoint.writer import Written, write
from hvtrain.errors import CheckpointError, CheckpointWriteFailed, GivenUp, UsageError

_log = logging.getLogger(__name__)


class BackgroundWriter:
    """Writes each submitted snapshot in a thread of its own, never two at once, and prunes afterwards.

    The tensors of a snapshot must stay unchanged until it is written: copy them, or ``wait()`` first. An
    error surfaces at the next ``submit``, ``wait`` or ``close``, once. ``on_written`` runs in that thread. ``passage``: see
    :func:`hvtrain.checkpoint.writer.write`; what it does not let through is left out, which only the log says.
    """

    def __init__(self, store: Store, retention: Retention | None = None,
                 on_written: Callable[[Written], None] | None = None,
                 passage: Callable[[], ContextManager[None]] = nullcontext):
        self._store, self._retention, self._on_written, self._passage = store, retention, on_written, passage
        self._thread: threading.Thread | None = None
        self._step = -1
        self.given_up = -1  # the step of the latest snapshot that was not let through
        self._error: BaseException | None = None
        self._closed = False

    @property
    def busy(self) -> bool:
        """True while a snapshot is being written."""
        return self._thread is not None and self._thread.is_alive()

    def submit(self, snapshot: Snapshot, timeout: float | None = None) -> None:
        """Start to write ``snapshot``, after the former one is done (waiting up to ``timeout`` seconds).

        Raises what the former write raised (this snapshot is then not written), CheckpointWriteFailed when
        that is not done in time, UsageError after ``close``.
        """
        if self._closed:
            raise UsageError("This checkpoint writer is closed; make a new one.")
        self.wait(timeout)
        self._step = snapshot.step
        # A daemon: a disk that hangs must not keep a failing process from ending; a cut write is harmless.
        self._thread = threading.Thread(target=self._write, args=(snapshot,), daemon=True,
                                        name=f"checkpoint-{snapshot.step}")
        self._thread.start()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until nothing is being written; raises as ``submit`` does."""
        begin = time.monotonic()
        if self._thread is not None:
            self._thread.join(timeout)
            if self._thread.is_alive():
                raise CheckpointWriteFailed(
                    f"The checkpoint of step {self._step} is still being written to {self._store.directory} "
                    f"after {time.monotonic() - begin:.1f} s of waiting. Is the disk hanging? Checkpoints "
                    "written before are intact.")
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self, timeout: float | None = None) -> None:
        """Wait for the last write and raise its error; further calls do nothing."""
        if not self._closed:
            self._closed = True
            self.wait(timeout)

    def __enter__(self) -> BackgroundWriter:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.close()
        except CheckpointError as failure:
            if error is None:
                raise
            _log.error("%s", failure)  # the error that is under way matters more

    def _write(self, snapshot: Snapshot) -> None:
        try:
            written = write(self._store, snapshot, self._passage)
            if self._on_written is not None:
                self._on_written(written)
            if self._retention is not None:
                self._store.prune(self._retention)
        except GivenUp as error:
            self.given_up = snapshot.step
            _log.warning("%s", error)
        except BaseException as error:  # carried over to the training thread
            self._error = error
