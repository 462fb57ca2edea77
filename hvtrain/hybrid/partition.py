"""Where to cut a model: the contiguous split over the given devices whose longest stage is the shortest.

::

    seconds  3  1  1 | 4  1 | 2  2  2          devices in their order, each with at least one layer
    stage     5         5       6              longest: 6 seconds; no other split has less

Dynamic programming from the last stage back. ``best[s][i]`` is the longest stage where devices s, s+1, ... share the
layers from i on, in the best way::

    best[s][i] = min over j > i of max(time of layers i..j-1 on device s, best[s+1][j])

where a stage that exceeds its device's memory takes infinitely long. A second run of the same kind finds, of all
splits with that longest stage, the one with the least sum of squared times, so that the others are even as well; of
equal ones the first in order is taken, which has the fewest layers in the early stages: they keep the most activations.

Exact: times are compared as whole numbers, 2^-50 of their sum. K * L^2 steps, vectorised: 1,000 layers over 64 devices
take 0.25 s, whether these are equal or of different speed and memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Callable, Sequence

import numpy as np

from hvtrain.errors import UsageError
from hvtrain.hybrid import splits
from hvtrain.hybrid.costs import ModelCosts

_ROWS = 64  # of a table in one go: with 1,000 columns they stay in the processor's cache
_FINE = 2.0**20  # shares of the longest stage, so that squares and their sums are whole numbers without rounding
_SHOWN = 8  # stages of a split in an error's text

Cells = Callable[[int, int, int], np.ndarray]


@dataclass(frozen=True)
class Device:
    """``speed`` relative to the device that the costs were measured on; ``memory`` in bytes, None: without limit."""

    speed: float = 1.0
    memory: int | None = None
    name: str = ""


@dataclass(frozen=True)
class Partition:
    """The number of layers in each stage, the seconds of a micro-batch in it (forward and backward), and its bytes."""

    split: tuple[int, ...]
    times: tuple[float, ...]
    memory: tuple[int, ...]

    @property
    def longest(self) -> float:
        """Seconds of the longest stage."""
        return max(self.times)


def partition(costs: ModelCosts, devices: Sequence[Device], *, in_flight: Sequence[int], microbatch: int | None = None,
              recompute: bool = False, repeats: Sequence[bool] | None = None) -> Partition:
    """The best split of the layers over ``devices``, in their order.

    Args:
        in_flight: micro-batches whose activations each stage keeps at a time (:func:`hvtrain.hybrid.schedule.peak`).
        microbatch: samples in a micro-batch; None: as measured.
        recompute: keep what enters a stage, and run its forward pass again before backward.
        repeats: with ``recompute``, the stages that do run it again; None: all. Others have it still when backward comes.

    A stage needs memory for its parameters, their gradients and the optimizer's state, and for the activations of the
    micro-batches in flight; with ``recompute`` for what enters it of those, and the activations of one.

    Raises UsageError where there are fewer layers than devices, and where no split fits the memory.
    """
    sizes = _Sizes(costs, devices, in_flight, microbatch, recompute, repeats)
    layers, stages = len(costs.layers), len(devices)
    splits.check_stages(stages, [layer.name for layer in costs.layers])
    longest = float(_table(sizes.seconds, stages, layers, np.maximum)[0, 0])
    if math.isinf(longest):
        roomiest = sizes.appraise(_walk(sizes.fill, stages, layers, np.maximum))
        raise sizes.too_little(roomiest, f"The model does not fit {stages} devices in any split. At least, with")

    def unevenness(stage: int, first: int, stop: int) -> np.ndarray:
        cells = sizes.seconds(stage, first, stop, longest)
        cells[cells > longest] = np.inf
        cells *= _FINE / (longest or 1.0)
        np.rint(cells, out=cells)
        return np.square(cells, out=cells)

    return sizes.appraise(_walk(unevenness, stages, layers, np.add))


def appraise(costs: ModelCosts, devices: Sequence[Device], split: Sequence[int], *, in_flight: Sequence[int],
             microbatch: int | None = None, recompute: bool = False, repeats: Sequence[bool] | None = None) -> Partition:
    """Times and memory of a given ``split``; arguments as for :func:`partition`.

    Raises UsageError where it does not fit the model, the devices or their memory.
    """
    sizes = _Sizes(costs, devices, in_flight, microbatch, recompute, repeats)
    if len(split) != len(devices):
        raise UsageError(f"hybrid.split makes {len(split)} stages, but there are {len(devices)} devices")
    splits.check(split, [layer.name for layer in costs.layers])
    found = sizes.appraise(split)
    if any(used > sizes.limit(stage) for stage, used in enumerate(found.memory)):
        raise sizes.too_little(found, "The model does not fit its devices: with")
    return found


class _Sizes:
    """Seconds and bytes of any stage. Tables have a row for its first layer, a column for the first of the next."""

    def __init__(self, costs: ModelCosts, devices: Sequence[Device], in_flight: Sequence[int], microbatch: int | None,
                 recompute: bool, repeats: Sequence[bool] | None):
        if not devices or len(in_flight) != len(devices) or min(in_flight) < 1:
            raise UsageError(f"Each of {len(devices)} devices needs a number of micro-batches in flight, at least 1; "
                             f"got {[*in_flight]}.")
        for device in devices:
            if not 0 < device.speed < math.inf or (device.memory is not None and device.memory < 1):
                raise UsageError("A device needs a speed above 0, and memory above 0 (hybrid.memory) or no limit; got "
                                 f"{device}.")
        costs = costs if microbatch is None else costs.at(microbatch)
        self._costs, self._devices, self._in_flight, self._recompute = costs, devices, in_flight, recompute
        self._repeats = [recompute and (repeats is None or repeats[stage]) for stage in range(len(devices))]
        self._times = {again: [layer.forward * (1 + again) + layer.backward for layer in costs.layers]
                       for again in (False, recompute)}
        if not all(0 <= time < math.inf for time in self._times[recompute]):
            raise UsageError(f"The layers' times must be finite, at least 0; got {self._times[recompute]}. Measure them again.")
        # A power of two changes no digit. Differences of whole numbers are exact: equal stages compare as equal.
        unit = 50 - math.frexp(math.fsum(self._times[recompute]))[1]
        self._ticks = {again: _sums(np.rint(np.ldexp(times, unit))) for again, times in self._times.items()}
        sizes = [layer.parameters for layer in costs.layers]
        self._fixed = _sums([2 * size + math.ceil(costs.state * size) for size in sizes])  # gradients: the second
        self._saved = _sums([layer.saved for layer in costs.layers])
        self._enters = np.array([costs.input, *(layer.output for layer in costs.layers)], float)

    def limit(self, stage: int) -> float:
        """Bytes of a device; infinite if it has no limit."""
        memory = self._devices[stage].memory
        return math.inf if memory is None else memory

    def seconds(self, stage: int, first: int, stop: int, longest: float = math.inf) -> np.ndarray:
        """Times of stages that begin with layers ``first`` to ``stop - 1``, in ticks; infinite what does not fit.

        Columns on the right that are all infinite or above ``longest`` may be left out.
        """
        speed, limit = self._devices[stage].speed, self.limit(stage)
        sums, own = self._bytes(stage, first, stop)
        ticks = self._ticks[self._repeats[stage]]
        latest = min(np.searchsorted(ticks, ticks[stop - 1] + longest * speed * (1 + 1e-9), "right"),
                     np.searchsorted(sums, own.max() + limit, "right"))
        columns = slice(first + 1, max(int(latest), first + 2))
        cells = ticks[None, columns] - ticks[first:stop, None]
        cells /= speed
        if limit < math.inf:
            np.copyto(cells, np.inf, where=sums[None, columns] > (own + limit)[:, None])
        return _upper(cells)

    def fill(self, stage: int, first: int, stop: int) -> np.ndarray:
        """Memory of the same stages, as a share of what the device has."""
        sums, own = self._bytes(stage, first, stop)
        return _upper((sums[None, first + 1:] - own[:, None]) / self.limit(stage))

    def _bytes(self, stage: int, first: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """For each column, and for each row: the memory of a stage is their difference."""
        count = self._in_flight[stage]
        sums = self._fixed + self._saved * (1 if self._recompute else count)
        return sums, sums[first:stop] - (count * self._enters[first:stop] if self._recompute else 0)

    def appraise(self, split: Sequence[int]) -> Partition:
        """Times and memory of ``split``, whether it fits or not."""
        ends = np.cumsum(split).tolist()
        ranges = [(end - length, end) for end, length in zip(ends, split)]
        times = [math.fsum(self._times[again][i:j]) / device.speed
                 for (i, j), device, again in zip(ranges, self._devices, self._repeats)]
        memory = []
        for stage, (i, j) in enumerate(ranges):
            sums, own = self._bytes(stage, i, i + 1)
            memory.append(int(sums[j] - own[0]))
        return Partition(tuple(int(length) for length in split), tuple(times), tuple(memory))

    def too_little(self, found: Partition, begin: str) -> UsageError:
        """What to say where ``found`` exceeds the memory of a device; the text begins with ``begin``."""
        stages = len(found.split)
        worst = max(range(stages), key=lambda stage: found.memory[stage] / self.limit(stage))
        first = sum(found.split[:worst])
        inside = self._costs.layers[first:first + found.split[worst]]
        advice = []
        if len(inside) > 1:
            advice.append(f"more stages (hybrid.stages={stages + 1})")
        if not self._recompute and self._in_flight[worst] > 1:
            advice.append("hybrid.recompute=true")
        if any(layer.saved for layer in inside) and self._costs.batch > 1:
            advice.append("smaller micro-batches (a larger hybrid.microbatches)")
        advice.append("hybrid.memory, if the devices have more")
        whose = f" ({self._devices[worst].name})" if self._devices[worst].name else ""
        what = f"layers {inside[0].name} to {inside[-1].name}" if len(inside) > 1 else f"layer {inside[0].name}"
        return UsageError(
            f"{begin} {_named(found.split)}, stage {worst} ({what}) needs {_amount(found.memory[worst])}, and its "
            f"device{whose} has {_amount(self.limit(worst))}. Set {', or '.join(advice)}.")


def _table(cells: Cells, stages: int, layers: int, join: np.ufunc) -> np.ndarray:
    """``best[s, i]``: the least of ``join(cells of s, best of s + 1)`` for layers i, i+1, ...; infinite: none."""
    best = np.full((stages + 1, layers + 1), np.inf)
    best[stages, layers] = 0.0
    for first in reversed(range(0, layers, _ROWS)):
        stop = min(first + _ROWS, layers)
        for stage in reversed(range(stages)):
            found = cells(stage, first, stop)
            others = best[stage + 1, first + 1:][:found.shape[1]]
            join(found, others, out=found).min(axis=1, out=best[stage, first:stop])
    return best


def _walk(cells: Cells, stages: int, layers: int, join: np.ufunc) -> list[int]:
    """The split that the table's first entry stands for; of equal ones the first in order."""
    best = _table(cells, stages, layers, join)
    split, first = [], 0
    for stage in range(stages):
        found = cells(stage, first, first + 1)[0]
        found = join(found, best[stage + 1, first + 1:][:len(found)])
        split.append(int(np.argmin(found)) + 1)
        first += split[-1]
    return split


def _upper(cells: np.ndarray) -> np.ndarray:
    """Infinite where a stage would have no layer: left of the diagonal."""
    side = len(cells)
    corner = cells[:, :side]
    corner[np.tri(side, corner.shape[1], k=-1, dtype=bool)] = np.inf
    return cells


def _sums(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Sums of the first 0, 1, 2, ... values."""
    return np.concatenate(([0.0], np.cumsum(np.asarray(values, float))))


def _named(split: Sequence[int]) -> str:
    shown = [*map(str, split[:_SHOWN]), *(["..."] if len(split) > _SHOWN else [])]
    return f"hybrid.split=[{', '.join(shown)}]"


def _amount(size: float) -> str:
    """Bytes in a unit that fits, with enough digits to tell two close ones apart."""
    power = min(max(int(math.log10(max(size, 1))) // 3, 0), 4)
    return f"{size / 1000**power:.4g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
