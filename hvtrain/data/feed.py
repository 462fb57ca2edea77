"""The stream of training steps as one rank sees it: its micro-batches of every global batch, loaded ahead."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import islice
from typing import Any, Callable, Iterator

import numpy as np

from hvtrain.config import Job
from hvtrain.data.loader import Loader, Work
from hvtrain.data.sampler import GlobalSampler, Position, even, micro, split


@dataclass(frozen=True)
class StepData:
    """One rank's share of a global batch of ``total`` samples.

    ``batches`` are its micro-batches and ``counts`` their sizes, both empty for a rank without samples; ``indices`` says
    which samples of the data set they are.
    ``after`` is where the run stands once the step is committed.
    """

    position: Position
    after: Position
    total: int
    batches: list[Any]
    counts: list[int]
    indices: np.ndarray


Pieces = Callable[[np.ndarray], "list[np.ndarray]"]


def pieces(job: Job) -> Pieces:
    """How a rank's share of a global batch becomes micro-batches."""
    hybrid = job.hybrid
    if hybrid is None:
        return lambda own: micro(own, job.data.micro_batch)
    assert isinstance(hybrid.microbatches, int)  # settled before a worker starts
    least = hybrid.microbatches
    # Samples in one of them while all workers are there. Fewer workers have more micro-batches, not larger ones, for which
    # a device may have no memory.
    most = -(-job.data.global_batch // ((job.launch.workers or 1) * least))
    return lambda own: even(own, max(least, -(-len(own) // most)))


def feed(sampler: GlobalSampler, loader: Loader, start: Position, *, rank: int, size: int,
         pieces: Pieces, steps: int) -> Iterator[StepData]:
    """Yields the next ``steps`` steps from ``start`` for ``rank`` of ``size``, cut into micro-batches by ``pieces``."""
    plans: deque[tuple[Position, int, list[int], np.ndarray]] = deque()

    def work() -> Iterator[Work]:
        for position, indices in islice(sampler.walk(start), steps):
            own = split(indices, rank, size)
            own_pieces = pieces(own)
            plans.append((position, len(indices), [len(piece) for piece in own_pieces], own))
            # A rank without samples still takes a turn, so that its plan is made in time.
            for piece in own_pieces or [np.empty(0, np.int64)]:
                yield position.epoch, piece

    batches = loader.batches(work())
    try:
        for _ in range(steps):
            first = next(batches)
            position, total, counts, own = plans.popleft()
            mine = [first, *islice(batches, len(counts) - 1)] if counts else []
            yield StepData(position, sampler.next(position, total), total, mine, counts, own)
    finally:
        batches.close()  # left early, by a stop or a broken round: what was loaded ahead is dropped now


def shares(length: int, batch: int, *, rank: int, size: int) -> list[np.ndarray]:
    """A rank's share of an evaluation over ``length`` samples, in batches of at most ``batch``."""
    return micro(split(np.arange(length, dtype=np.int64), rank, size), batch)
