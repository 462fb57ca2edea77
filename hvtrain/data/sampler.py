"""Which samples every step uses: a pure function of (seed, epoch, cursor), never of the world size.

One epoch of 10 samples, ``global_batch`` 4, first on 2 ranks, then on 3::

    order(seed, epoch)   7 2 9 0 | 4 1 8 3 | 6 5
    cursor               0         4         8
    rank 0               7 2       4 1       6
    rank 1                   9 0       8     5
    rank 2                               3   -     idle, and nothing is padded or repeated

The cursor counts samples. So any number of ranks, or another ``global_batch``, can go on from it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any, Iterator, Mapping, Sequence

import numpy as np

from hvtrain.errors import CheckpointDamaged, UsageError, UserCodeError

_ORDER_STREAM = 0  # spawn key of the epoch orders; sources.py has its own, so that the streams never meet
_KEPT_PLANS = 2  # a loader that reads ahead asks for the next epoch while the loop is still in this one


@dataclass(frozen=True, order=True)
class Position:
    """Where a run stands in its data: ``cursor`` samples of ``epoch`` (from 0) have been consumed."""

    epoch: int = 0
    cursor: int = 0

    def __post_init__(self) -> None:
        if self.epoch < 0 or self.cursor < 0:
            raise UsageError(f"A position counts from 0, got epoch {self.epoch}, cursor {self.cursor}.")

    def to_json(self) -> dict[str, int]:
        """The position as a JSON object."""
        return {"epoch": self.epoch, "cursor": self.cursor}

    @classmethod
    def from_json(cls, value: Any) -> Position:
        """The inverse of :meth:`to_json`; raises CheckpointDamaged for anything else."""
        numbers = [value.get("epoch"), value.get("cursor")] if isinstance(value, Mapping) else []
        if not numbers or any(type(number) is not int or number < 0 for number in numbers):
            raise CheckpointDamaged(
                f"The position in the data must be {{'epoch': N, 'cursor': N}}, got {value!r}. "
                "Resume from another checkpoint.")
        return cls(*numbers)


@dataclass(frozen=True, eq=False)
class Plan:
    """One epoch: its ``length`` draws in order, to be consumed ``global_batch`` at a time.

    ``order`` is None where the draws are simply 0, 1, 2, ...
    """

    epoch: int
    length: int
    global_batch: int
    drop_last: bool
    order: np.ndarray | None

    def count(self, cursor: int) -> int:
        """Size of the batch at ``cursor``: ``global_batch``, less at the end, 0 where the epoch is over."""
        if not 0 <= cursor <= self.length:
            raise UsageError(f"The epoch has {self.length} samples, so its cursor is 0 to {self.length}, "
                             f"got {cursor}. Has the data set changed since the checkpoint?")
        left = self.length - cursor
        if left >= self.global_batch:
            return self.global_batch
        return 0 if self.drop_last else left

    def batch(self, cursor: int) -> np.ndarray:
        """Indices (int64, the caller's own copy) of the global batch that begins at ``cursor``."""
        stop = cursor + self.count(cursor)
        if self.order is None:
            return np.arange(cursor, stop, dtype=np.int64)
        return self.order[cursor:stop].astype(np.int64)

    def steps_left(self, cursor: int = 0) -> int:
        """How many batches are left from ``cursor`` to the end of the epoch."""
        if not self.count(cursor):
            return 0
        whole, rest = divmod(self.length - cursor, self.global_batch)
        return whole if self.drop_last or not rest else whole + 1


class GlobalSampler:
    """Draws global batches from ``length`` samples; equal arguments give equal batches on every rank.

    ``weights`` (one number >= 0 per sample) makes an epoch ``length`` draws with replacement, in proportion
    to them; each draw is consumed exactly once as well. With ``shuffle=False`` the draws of an epoch come in
    ascending order. ``drop_last`` leaves out an epoch's short last batch.

    Raises UserCodeError for empty data or unusable weights, UsageError for other impossible arguments.
    """

    def __init__(self, length: int, global_batch: int, seed: int, *, shuffle: bool = True,
                 drop_last: bool = False, weights: Any = None):
        if length < 1:
            raise UserCodeError(f"The training data has no samples (its length is {length}). "
                                "Return a data set with at least one sample.")
        if global_batch < 1:
            raise UsageError(f"data.global_batch must be at least 1, got {global_batch}.")
        if seed < 0:
            raise UsageError(f"run.seed must be at least 0, got {seed}.")
        if drop_last and global_batch > length:
            raise UsageError(f"data.drop_last with data.global_batch {global_batch} leaves no batch of "
                             f"{length} samples. Use a smaller data.global_batch or data.drop_last=false.")
        self.length, self.global_batch, self.seed = int(length), int(global_batch), int(seed)
        self.shuffle, self.drop_last = shuffle, drop_last
        self._cumulated = None if weights is None else _cumulate(weights, self.length)
        self._plans: dict[int, Plan] = {}

    @property
    def steps_per_epoch(self) -> int:
        """Batches of one whole epoch."""
        whole, rest = divmod(self.length, self.global_batch)
        return whole if self.drop_last or not rest else whole + 1

    def with_batch(self, global_batch: int) -> GlobalSampler:
        """The same draws in global batches of another size."""
        if global_batch == self.global_batch:
            return self
        other = copy.copy(self)
        other.global_batch = global_batch
        other._plans = {epoch: replace(plan, global_batch=global_batch) for epoch, plan in self._plans.items()}
        return other

    def plan_outline(self, epoch: int) -> Plan:
        """The epoch's plan without its order: for counting."""
        return Plan(epoch, self.length, self.global_batch, self.drop_last, None)

    def plan(self, epoch: int) -> Plan:
        """The epoch's plan; the latest two are kept. May be called in a thread to have one ready early."""
        found = self._plans.get(epoch)
        if found is None:
            found = Plan(epoch, self.length, self.global_batch, self.drop_last, self._draw(epoch))
            for stale in list(self._plans)[:1 - _KEPT_PLANS]:
                self._plans.pop(stale, None)
            self._plans[epoch] = found
        return found

    def epoch_order(self, epoch: int) -> np.ndarray:
        """All draws of the epoch in order, int64; the caller's own copy."""
        order = self.plan(epoch).order
        return np.arange(self.length, dtype=np.int64) if order is None else order.astype(np.int64)

    def batch(self, epoch: int, cursor: int) -> np.ndarray:
        """Indices (int64) of the global batch at ``cursor``: short at the end, empty after it."""
        return self.plan(epoch).batch(cursor)

    def next(self, position: Position, count: int | None = None) -> Position:
        """The position after ``count`` more samples (default: after the batch at ``position``).

        Rolls over to the next epoch where no batch is left in this one; so ``count=0`` settles a position
        that was saved at the very end of an epoch.
        """
        # The counts need no order: a rank may ask long before, or after, it needs that epoch.
        plan = self.plan_outline(position.epoch)
        count = plan.count(position.cursor) if count is None else count
        left = self.length - position.cursor
        if not 0 <= count <= left:
            raise UsageError(f"At most the {left} samples left in epoch {position.epoch} can be consumed, "
                             f"got {count}.")
        cursor = position.cursor + count
        return Position(position.epoch, cursor) if plan.count(cursor) else Position(position.epoch + 1, 0)

    def walk(self, position: Position = Position()) -> Iterator[tuple[Position, np.ndarray]]:
        """Yields (position, indices of the global batch there) from ``position`` on, epoch after epoch."""
        position = self.next(position, 0)
        while True:
            indices = self.batch(position.epoch, position.cursor)
            yield position, indices
            position = self.next(position, len(indices))

    def _draw(self, epoch: int) -> np.ndarray | None:
        if self._cumulated is None and not self.shuffle:
            return None
        random = np.random.Generator(np.random.PCG64(
            np.random.SeedSequence(self.seed, spawn_key=(_ORDER_STREAM, epoch))))
        small = np.int32 if self.length < 2**31 else np.int64  # kept for the whole epoch: half the memory
        if self._cumulated is None:
            return random.permutation(self.length).astype(small, copy=False)
        # Sorted keys make the look-up walk through memory in order: 25 times faster at 10 M samples, and
        # the draws are the same set. Only exact operations, so that different hosts agree on every draw.
        keys = random.random(self.length)
        keys.sort()
        keys *= self._cumulated[-1]
        np.minimum(keys, np.nextafter(self._cumulated[-1], 0.0), out=keys)
        drawn = np.searchsorted(self._cumulated, keys, side="right")
        if self.shuffle:
            random.shuffle(drawn)
        return drawn.astype(small, copy=False)


def bounds(count: int, rank: int, size: int) -> tuple[int, int]:
    """Start and stop of a rank's share of ``count``; shares differ by at most one, low ranks get more."""
    if not 0 <= rank < size:
        raise UsageError(f"A rank is 0 to {size - 1} in a world of {size}, got {rank}.")
    each, rest = divmod(count, size)
    start = rank * each + min(rank, rest)
    return start, start + each + (rank < rest)


def split(indices: np.ndarray, rank: int, size: int) -> np.ndarray:
    """The rank's contiguous slice of a global batch; empty where there are fewer samples than ranks."""
    start, stop = bounds(len(indices), rank, size)
    return indices[start:stop]


def micro(indices: np.ndarray, micro_batch: int | None) -> list[np.ndarray]:
    """``indices`` in pieces of ``micro_batch`` (None: one piece), the last may be shorter; none if empty."""
    if micro_batch is not None and micro_batch < 1:
        raise UsageError(f"data.micro_batch must be at least 1, got {micro_batch}.")
    step = micro_batch or max(len(indices), 1)
    return [indices[start:start + step] for start in range(0, len(indices), step)]


def even(indices: np.ndarray, pieces: int) -> list[np.ndarray]:
    """``indices`` in ``pieces`` pieces whose sizes differ by at most one; fewer if there are fewer indices, none empty."""
    if pieces < 1:
        raise UsageError(f"hybrid.microbatches must be at least 1, got {pieces}.")
    return [split(indices, number, min(pieces, len(indices))) for number in range(min(pieces, len(indices)))]


def balanced_weights(labels: Sequence[Any] | np.ndarray) -> np.ndarray:
    """One weight per label (1-D), 1 / the label's frequency: every class is drawn equally often."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or not len(labels):
        raise UserCodeError("Balanced sampling needs one label per sample in one dimension, got an array of "
                            f"shape {labels.shape}. Return a 1-D array of labels.")
    if labels.dtype.kind in "iu" and 0 <= labels.min() and labels.max() <= 4 * len(labels):
        return 1.0 / np.bincount(labels)[labels]  # no sort: linear in the number of labels
    _, which, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return 1.0 / counts[which.reshape(-1)]


def _cumulate(weights: Any, length: int) -> np.ndarray:
    weights = np.asarray(weights, dtype=np.float64)
    if weights.shape != (length,):
        raise UserCodeError(f"Weighted sampling needs one weight for each of the {length} samples, got an "
                            f"array of shape {weights.shape}.")
    if not np.isfinite(weights).all() or weights.min() < 0:
        raise UserCodeError("Sampling weights must be finite and not negative; the first bad one is that of "
                            f"sample {int(np.argmin(np.isfinite(weights) & (weights >= 0)))}.")
    total = np.cumsum(weights)
    if not 0 < total[-1] < np.inf:
        raise UserCodeError(f"The sum of the sampling weights must be above 0 and finite, got {total[-1]}. "
                            "Give at least one sample a weight above 0.")
    return total
