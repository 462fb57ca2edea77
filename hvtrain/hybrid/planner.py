"""Which shape to train in: all that come into question are predicted, one is recommended, with the reason.

::

    devices 8 a node     stages 1, 2, 4, 8         replicas = devices / stages
    each of them         micro-batches 1, 2, 4 ... recomputation, codecs where there is a network
    fit the memory? ---> the fastest, and of those hardly slower the simplest
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Iterator, Sequence

from hvtrain.errors import UsageError
from hvtrain.hybrid.cluster import Cluster
from hvtrain.hybrid.prediction import Prediction, Shape, predict
from hvtrain.hybrid.speeds import Speeds

HARDLY = 0.03
"""A simpler shape that takes so much longer, as a fraction, is preferred: predictions are not better than that."""

WORTH_ROUNDING = 0.1
"""A codec rounds gradients; it is recommended only where it saves at least this part of a step against a milder one."""

CODECS = ("none", "fp16", "bf16", "int8")
"""By what they keep of a gradient."""

MOST_MICROBATCHES = 64


@dataclass(frozen=True)
class Choice:
    """What a search may choose from.

    Args:
        replicas: how many there are; None for as many as the cluster's devices make.
        stages: the counts that come into question; None for all that the devices of a node can be grouped by.
        microbatches: the count; None for any.
        split: layers of each stage; None for the best.
    """

    replicas: int | None = None
    stages: tuple[int, ...] | None = None
    microbatches: int | None = None
    split: tuple[int, ...] | None = None
    recompute: tuple[bool, ...] = (False, True)
    codecs: tuple[str, ...] = ("none",)
    schedule: str = "1f1b"


@dataclass(frozen=True)
class Plan:
    """All ``predictions``, the ``best`` of them, and the ``reason`` in a sentence or two."""

    cluster: Cluster
    global_batch: int
    predictions: tuple[Prediction, ...]
    best: Prediction
    reason: str


def plan(speeds: Speeds, cluster: Cluster, global_batch: int, choice: Choice) -> Plan:
    """Predict all shapes of ``choice`` and recommend one.

    Raises UsageError where none is possible, or none fits the memory; it says how much is needed at least.
    """
    predictions = tuple(predict(speeds, cluster, shape, global_batch, choice.split)
                        for shape in shapes(cluster, len(speeds.largest.layers), global_batch, choice))
    best = recommend(predictions, cluster)
    return Plan(cluster, global_batch, predictions, best, reason(predictions, best, cluster))


def shapes(cluster: Cluster, layers: int, global_batch: int, choice: Choice) -> Iterator[Shape]:
    """The shapes of ``choice``. Raises UsageError if none has as many layers as stages."""
    wanted = choice.stages or tuple(count for count in range(1, cluster.devices + 1) if not cluster.devices % count)
    stages = [count for count in wanted if count <= layers]
    if not stages:
        raise UsageError(f"{min(wanted)} stages need at least {min(wanted)} layers, but the model can be cut into {layers} "
                         f"only. Set hybrid.stages to at most {layers}.")
    for count in stages:
        replicas = choice.replicas or cluster.nodes * max(1, cluster.devices // count)
        if replicas > global_batch and count != stages[-1]:
            continue  # some would have no samples
        for microbatches in _microbatches(count, -(-global_batch // replicas), choice.microbatches):
            for recompute in choice.recompute:
                if recompute and microbatches == 1 and False in choice.recompute:
                    continue  # what the only micro-batch keeps is there in its backward pass either way
                for codec in choice.codecs:
                    yield Shape(replicas, count, microbatches, recompute, codec, choice.schedule)


def _microbatches(stages: int, share: int, wanted: int | None) -> list[int]:
    if wanted is not None:
        return [min(wanted, share)]
    powers = {1 << power for power in range(MOST_MICROBATCHES.bit_length())}
    return sorted(count for count in powers | {stages * factor for factor in (1, 2, 4, 8)}
                  if count <= min(share, max(MOST_MICROBATCHES, stages)))


def recommend(predictions: Sequence[Prediction], cluster: Cluster) -> Prediction:
    """The fastest that fits; of those hardly slower the simplest. Raises UsageError if none fits.

    More stages than cores only where nothing else fits: how well they take turns is not predicted.
    """
    fitting = [found for found in predictions if found.fits]
    if not fitting:
        raise _nothing_fits(predictions, cluster)
    usable = [found for found in fitting if not found.crowded] or fitting
    among, fastest = usable, math.inf
    for codec in CODECS:
        same = [found for found in usable if found.shape.codec == codec]
        if same and min(found.seconds for found in same) < (1 - WORTH_ROUNDING) * fastest:
            among, fastest = same, min(found.seconds for found in same)
    return min((found for found in among if found.seconds <= (1 + HARDLY) * fastest), key=_simplicity)


def _simplicity(found: Prediction) -> tuple:
    shape = found.shape
    return shape.stages, shape.recompute, shape.microbatches, found.seconds


def _nothing_fits(predictions: Sequence[Prediction], cluster: Cluster) -> UsageError:
    least = min(predictions, key=lambda found: max(found.memory))
    advice = ["fewer samples per replica (data.global_batch, or more replicas)", "more memory (hybrid.memory)"]
    if not any(found.shape.recompute for found in predictions):
        advice.insert(0, "hybrid.recompute=true")
    if least.shape.stages < sum(least.split):
        advice.insert(0, "more stages (hybrid.stages, more devices)")
    assert cluster.memory is not None
    return UsageError(f"The model fits in no shape: {describe(least.shape)} needs the least, {amount(max(least.memory))} on "
                      f"a device, and that has {amount(cluster.memory)}. Try {', or '.join(advice)}.")


def reason(predictions: Sequence[Prediction], best: Prediction, cluster: Cluster) -> str:
    """Why ``best``: what the alternatives would take, or need."""
    said = _about_stages(predictions, best, cluster)
    same = [found for found in predictions if found.shape.stages == best.shape.stages and found.fits]
    if best.shape.recompute and not any(not found.shape.recompute for found in same):
        said += " Without recomputation it does not fit."
    exact = min((found.seconds for found in same if found.shape.codec == "none"), default=best.seconds)
    if exact > best.seconds and best.shape.codec != "none":
        said += (f" {best.shape.codec} saves {1 - best.seconds / exact:.0%} of the step; it rounds gradients, so compare the "
                 "loss with comm.codec=none once.")
    return said


def _about_stages(predictions: Sequence[Prediction], best: Prediction, cluster: Cluster) -> str:
    alike = [found for found in predictions if found.shape.codec == best.shape.codec]
    whole = [found for found in alike if found.shape.stages == 1]
    cut = [found for found in alike if found.shape.stages > 1]
    if best.shape.stages == 1:
        if not cut:
            return "There is one device for each replica."
        other = min((found for found in cut if found.fits), key=lambda found: found.seconds, default=None)
        if other is None:
            return "No shape with more stages fits the memory."
        return f"Nothing gains by stages here: {describe(other.shape)} would take {_times(other, best)}."
    if not whole and len({found.shape.stages for found in cut}) > 1:
        return "It is the fastest of those with samples for every replica."
    if not whole:
        return "It is the fastest with that many stages."
    fitting = [found for found in whole if found.fits]
    if not fitting:
        least = min(max(found.memory) for found in whole)
        return (f"The whole model does not fit a device: it needs at least {amount(least)}, and there are "
                f"{amount(cluster.memory or 0)}. Of the shapes that fit this is the fastest.")
    plain = min(fitting, key=lambda found: found.seconds)
    text = f"One stage ({describe(plain.shape)}) would take {_times(plain, best)}"
    if plain.waiting > best.waiting and plain.waiting > 0.05 * plain.seconds:
        return f"{text}, {plain.waiting / plain.seconds:.0%} of it waiting for gradients."
    return f"{text}."


def describe(shape: Shape) -> str:
    """In words: "4 replicas x 2 stages, 8 micro-batches, recomputing"."""
    parts = [f"{_count(shape.replicas, 'replica')} x {_count(shape.stages, 'stage')}"]
    parts += [_count(shape.microbatches, "micro-batch", "micro-batches")]
    parts += ["recomputing"] if shape.recompute else []
    parts += [shape.codec] if shape.codec != "none" else []
    return ", ".join(parts)


def amount(size: float) -> str:
    """Bytes with a unit, three digits."""
    power = next((power for power in range(4) if size < 999.5 * 1000**power), 4)
    return f"{size / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def duration(seconds: float) -> str:
    """Seconds or milliseconds, three digits."""
    return f"{seconds:.3g} s" if seconds >= 0.9995 else f"{seconds * 1000:.3g} ms"


def _times(found: Prediction, best: Prediction) -> str:
    return f"{duration(found.seconds)}, {found.seconds / best.seconds:.2f} times as long"


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
