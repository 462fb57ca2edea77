"""Loads batches in threads ahead of the step, in order.

::

    work     (0, i0) (0, i1) (0, i2) (0, i3) ...      pulled in the consuming thread, a few items ahead
                |       |       |
    threads     A       B       A                     any of them may finish first
                |       |       |
    batches    b0  ->  b1  ->  b2                     always in the order of the work

Threads, not processes: a worker that dies leaves nothing behind, a round that resizes costs no start-up, and
batches need no copy between processes. numpy, torch and image decoders let other threads run meanwhile.
"""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
import weakref
from collections import deque
from typing import Any, Callable, Iterable, Iterator, Tuple

import numpy as np

from hvtrain.data.collate import CollateError, collate as stack
from hvtrain.data.sources import Samples, Source, failure, preview
from hvtrain.errors import UsageError, UserCodeError

log = logging.getLogger(__name__)

Work = Tuple[int, np.ndarray]  # (epoch, indices)

_SLOW = 10.0  # seconds without a batch until that is said in the log
_LOOK = 0.5  # seconds between looks whether the loader was closed, while a batch is waited for
_JOIN = 5.0  # seconds that close() gives to threads which are inside the user's code


class Loader:
    """Turns (epoch, indices) into batches of ``source``.

    ``workers`` threads load at least ``prefetch`` batches ahead; with 0 each batch is loaded when it is asked
    for. ``collate`` stacks a list of samples; ``seed`` feeds the generators of ``sample(index, rng)``.
    With workers the data set is used by several threads at once. A context manager; threads start with the
    first batch, end with :meth:`close`.
    """

    def __init__(self, source: Source, collate: Callable[[list], Any] = stack, workers: int = 0,
                 prefetch: int = 2, seed: int = 0):
        if workers < 0 or prefetch < 1:
            raise UsageError("data.workers must be at least 0 and data.prefetch at least 1, got "
                             f"{workers} and {prefetch}.")
        self._load = _Load(source, collate, seed)
        self._workers, self._ahead = workers, max(prefetch, workers)
        self._pool: _Pool | None = None
        self._closed = False

    def batches(self, work: Iterable[Work]) -> Iterator[Any]:
        """Yields the batch of every item of ``work``, in order; None for one without indices.

        ``work`` is pulled up to max(prefetch, workers) items ahead. Leaving the iterator early discards what
        was loaded ahead, and another may be started at once. Raises UserCodeError where the data set raised,
        at the batch concerned, with the index of the sample and the original traceback.
        """
        if self._closed:
            raise UsageError("This loader is closed; make a new one.")
        return self._overlapped(work) if self._workers else (self._load(*item) for item in work)

    def example(self, count: int) -> tuple[Any, int]:
        """A batch of the first ``count`` samples, as epoch 0 has them; and ``count``."""
        return self._load(0, np.arange(count, dtype=np.int64)), count

    def close(self) -> None:
        """Stops the threads; a batch being waited for elsewhere ends with an error. May be called again."""
        self._closed = True
        if self._pool is not None:
            self._pool.close()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _overlapped(self, work: Iterable[Work]) -> Iterator[Any]:
        if self._pool is None:
            self._pool = _Pool(self._load, self._workers)
            weakref.finalize(self, self._pool.stop)  # a loader that was never closed leaves no threads either
        submit, items = self._pool.submit, iter(work)
        pending = deque(submit(item) for item in itertools.islice(items, self._ahead))
        try:
            while pending:
                batch = pending.popleft().wait()
                pending.extend(submit(item) for item in itertools.islice(items, 1))
                yield batch
        finally:
            for ticket in pending:
                ticket.unwanted = True


class _Load:
    """Loads one batch; apart from Loader so that threads do not keep that alive."""

    def __init__(self, source: Source, collate: Callable[[list], Any], seed: int):
        self.source, self.collate, self.seed = source, collate, seed

    def __call__(self, epoch: int, indices: np.ndarray) -> Any:
        if not len(indices):
            return None
        try:
            got = self.source.fetch(indices, seed=self.seed, epoch=epoch)
            return self.collate(got) if isinstance(got, Samples) else got
        except CollateError as error:
            index = int(indices[error.position])
            raise failure(error, f"Sample {index} of the data set does not fit its batch", index) from error
        except UserCodeError:
            raise
        except Exception as error:
            raise failure(error, f"Samples {preview(indices)} of the data set gave no batch") from error


class _Ticket:
    """One batch on its way."""

    __slots__ = ("item", "done", "unwanted", "result", "error", "_stopped")

    def __init__(self, item: Work, stopped: threading.Event):
        self.item, self._stopped = item, stopped
        self.done, self.unwanted = threading.Event(), False
        self.result: Any = None
        self.error: BaseException | None = None

    def wait(self) -> Any:
        begin, said = time.monotonic(), 0.0
        while not self.done.wait(_LOOK):
            if self._stopped.is_set():
                raise UsageError("The loader was closed while a batch was waited for.")
            waited = time.monotonic() - begin
            if waited >= said + _SLOW:
                said = waited
                log.warning("waiting for samples %s of the data set for %.0f s now",
                            preview(self.item[1]), waited)
        if self.error is not None:
            raise self.error
        return self.result


class _Pool:
    """Daemon threads (one stuck in the user's code must not keep the process) around one queue."""

    def __init__(self, load: _Load, workers: int):
        self._tickets: queue.SimpleQueue[_Ticket | None] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=_serve, args=(load, self._tickets, self._stopped), daemon=True,
                             name=f"hvtrain-loader-{number}")
            for number in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, item: Work) -> _Ticket:
        ticket = _Ticket(item, self._stopped)
        self._tickets.put(ticket)
        return ticket

    def stop(self) -> None:
        """Tells the threads to end, without waiting."""
        if not self._stopped.is_set():
            self._stopped.set()
            for _ in self._threads:
                self._tickets.put(None)

    def close(self) -> None:
        self.stop()
        deadline = time.monotonic() + _JOIN
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))
        stuck = [thread.name for thread in self._threads if thread.is_alive()]
        if stuck:
            log.warning("%s still inside the data set's code after %.0f s; left behind, they end with it",
                        ", ".join(stuck), _JOIN)


def _serve(load: _Load, tickets: queue.SimpleQueue[_Ticket | None], stopped: threading.Event) -> None:
    while True:
        ticket = tickets.get()
        if ticket is None:
            return
        if not (ticket.unwanted or stopped.is_set()):
            try:
                ticket.result = load(*ticket.item)
            except BaseException as error:  # it belongs to the consumer, SystemExit too
                ticket.error = error
            ticket.done.set()
        del ticket  # or this thread would hold on to a batch until the next one
