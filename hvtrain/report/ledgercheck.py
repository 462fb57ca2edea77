"""Checks a ledger (see ``ledger``): over all committed steps, is each sample of each epoch used exactly once?"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Container, Protocol

import numpy as np

from hvtrain.data.sampler import GlobalSampler, Position
from hvtrain.report.ledger import Records, Used, read

MAX_NOTES = 10
"""So many steps with something wrong are described one by one."""


@dataclass(frozen=True)
class LedgerReport:
    """What a ledger shows. ``steps`` is how many the run has committed, ``wanted`` how many it should have.

    ``missing`` and ``doubled`` count samples, against what the sampler says; ``repeated`` counts steps that were
    committed again after they had been lost, ``retried`` those that a broken round left unfinished; ``sizes`` are the
    numbers of workers that the steps were computed by; ``epochs`` counts whole ones. ``checked`` is False where
    nothing was known of what should have been used.
    """

    steps: int
    wanted: int
    checked: bool = True
    samples: int = 0
    missing: int = 0
    doubled: int = 0
    repeated: int = 0
    retried: int = 0
    epochs: int = 0
    sizes: tuple[int, ...] = ()
    torn: int = 0
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """All steps are there, and each sample was used exactly once."""
        return self.checked and self.steps == self.wanted > 0 and not self.missing and not self.doubled

    @property
    def verdict(self) -> str:
        """One sentence."""
        if not self.wanted:
            return "the ledger is empty"
        if not self.checked:
            return (f"{self.steps:,} of {self.wanted:,} steps committed; what they should have used is not known "
                    "(weighted sampling)")
        if self.ok:
            whole = f", {self.epochs} whole epoch{'' if self.epochs == 1 else 's'}" if self.epochs else ""
            return f"{self.samples:,} samples in {self.steps:,} steps{whole}: each used exactly once"
        return (f"{self.steps:,} of {self.wanted:,} steps committed; {self.missing:,} samples missing, "
                f"{self.doubled:,} used once too often")


class Expectation(Protocol):
    """What the steps should have used, asked for one after the other. ``epochs`` counts those that are over."""

    epochs: int

    def next(self, total: int | None) -> tuple[Position, np.ndarray]:
        """Position and samples of the next step; ``total``, if known, is the size of its global batch."""


class BySampler:
    """The sampler says what every step uses."""

    def __init__(self, sampler: GlobalSampler, position: Position = Position()):
        self._sampler, self._position = sampler, sampler.next(position, 0)
        self.epochs = self._position.epoch

    def next(self, total: int | None) -> tuple[Position, np.ndarray]:
        position, plan = self._position, self._sampler.plan(self._position.epoch)
        if total is None or total == plan.count(position.cursor):
            indices = plan.batch(position.cursor)
        else:
            order = self._sampler.epoch_order(position.epoch)
            indices = order[position.cursor:position.cursor + total]
        self._position = self._sampler.next(position, len(indices))
        self.epochs = self._position.epoch
        return position, indices


class ByLedger:
    """Another run of the same job says it, for draws that the ledger alone cannot check (weighted sampling)."""

    def __init__(self, records: Records):
        self._steps = effective(records)
        self._step = self.epochs = 0

    def next(self, total: int | None) -> tuple[Position, np.ndarray]:
        self._step += 1
        lines = self._steps.get(self._step, [])
        if not lines:
            return Position(self.epochs), np.empty(0, np.int64)
        self.epochs = lines[0].epoch
        return Position(lines[0].epoch, lines[0].cursor), np.concatenate([line.indices for line in lines])


def check(directory: str | os.PathLike[str], sampler: GlobalSampler | None = None, *,
          steps: int | None = None) -> LedgerReport:
    """Read and check the ledger in ``directory``.

    ``sampler`` is by default the one that the ledger names; ``steps`` is how many there should be, by default as many
    as were committed.
    """
    records = read(directory)
    return audit(records, sampler if sampler is not None else sampler_of(records), steps=steps)


def sampler_of(records: Records) -> GlobalSampler | None:
    """The sampler that a ledger names; None if it names none, or one with weights, which are not in the ledger."""
    named = records.sampler
    if named is None or named.get("weighted"):
        return None
    return GlobalSampler(named["length"], named["global_batch"], named["seed"], shuffle=named["shuffle"],
                         drop_last=named["drop_last"])


def effective(records: Records) -> dict[int, list[Used]]:
    """For each committed step the lines ``used`` that count, by rank: those of the latest round that committed it."""
    latest: dict[int, tuple[int, int]] = {}
    for line in records.committed:
        latest[line.step] = max(latest.get(line.step, line.attempt), line.attempt)
    result: dict[int, list[Used]] = {step: [] for step in sorted(latest)}
    for line in records.used:
        if latest.get(line.step) == line.attempt:
            result[line.step].append(line)
    for lines in result.values():
        lines.sort(key=lambda line: line.rank)
    return result


def audit(records: Records, against: GlobalSampler | Expectation | None, *, steps: int | None = None) -> LedgerReport:
    """Compare records with what should have been used; with ``against`` None there is no verdict on the samples.

    A step that was not committed lacks all its samples.
    """
    expectation = BySampler(against) if isinstance(against, GlobalSampler) else against
    found = effective(records)
    wanted = max(found, default=0) if steps is None else steps
    tally = _Tally()
    for step in range(1, wanted + 1):
        lines = found.get(step, [])
        got = np.concatenate([line.indices for line in lines]) if lines else np.empty(0, np.int64)
        tally.samples += len(got)
        tally.sizes.update(line.size for line in lines)
        if expectation is not None:
            total = max((line.total for line in lines if line.total is not None), default=None)
            tally.compare(step, *expectation.next(total), got, lines if step in found else None)
    # Steps beyond those that the job was to make have used samples that nobody asked for.
    tally.doubled += sum(len(line.indices) for step in found if step > wanted for line in found[step])
    committed = {(line.step, line.attempt) for line in records.committed}
    begun = {(line.step, line.attempt) for line in records.used}
    return LedgerReport(
        steps=sum(1 <= step <= wanted for step in found), wanted=wanted, checked=expectation is not None,
        samples=tally.samples, missing=tally.missing, doubled=tally.doubled, repeated=len(committed) - len(found),
        retried=len(begun - committed), epochs=expectation.epochs if expectation is not None and wanted else 0,
        sizes=tuple(sorted(tally.sizes)), torn=records.torn, notes=(*_uncommitted(found, wanted), *tally.notes))


@dataclass
class _Tally:
    samples: int = 0
    missing: int = 0
    doubled: int = 0
    sizes: set[int] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    def compare(self, step: int, position: Position, expected: np.ndarray, got: np.ndarray,
                lines: list[Used] | None) -> None:
        """Count what one step lacks and has too much; ``lines`` are None for one that nobody committed.

        The order within a step does not matter.
        """
        if np.array_equal(expected, got):  # ranks take contiguous slices, so this is the usual case
            return
        missing, doubled = _difference(expected, got), _difference(got, expected)
        self.missing += missing
        self.doubled += doubled
        if lines is not None and (missing or doubled) and len(self.notes) < MAX_NOTES:
            ranks = ", ".join(str(line.rank) for line in lines) or "none"
            size = max((line.size for line in lines), default=0)
            where = f"epoch {position.epoch}, cursor {position.cursor}"
            self.notes.append(f"step {step} ({where}): {missing} of {len(expected)} samples missing, {doubled} used "
                              f"once too often; there are lines of ranks {ranks} of {size}")


def _uncommitted(found: Container[int], wanted: int) -> list[str]:
    """The steps that nobody committed, as one sentence, if there are any."""
    lost = [step for step in range(1, wanted + 1) if step not in found]
    if not lost:
        return []
    runs = [lost[0], *(step for before, step in pairwise(lost) if step != before + 1)]
    ends = [*(before for before, step in pairwise(lost) if step != before + 1), lost[-1]]
    names = [str(first) if first == last else f"{first} to {last}" for first, last in zip(runs, ends)]
    shown = ", ".join(names[:MAX_NOTES]) + (", ..." if len(names) > MAX_NOTES else "")
    return [f"not committed: step{'' if len(lost) == 1 else 's'} {shown}"]


def _difference(left: np.ndarray, right: np.ndarray) -> int:
    """How many elements ``left`` has beyond ``right``, both taken as multisets."""
    values, places = np.unique(np.concatenate([left, right]), return_inverse=True)
    ours, theirs = (np.bincount(part, minlength=len(values)) for part in np.split(places, [len(left)]))
    return int((ours - theirs).clip(min=0).sum())
