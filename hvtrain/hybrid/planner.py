"""Which shape to train in: all that come into question are predicted, one is recommended, with the reason.

::

    devices 8 a node     stages 1, 2, 4, 8         replicas = devices / stages, no more than samples
    8 cores a node       the same                  replicas = 1, 2, 4 ... cores / stages, with several threads each
    each of them         micro-batches 1, 2, 4 ... recomputation, codecs where there is a network
    fit the memory? ---> the fastest, and of those hardly slower the simplest
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Iterator, Sequence

from hvtrain.errors import UsageError
from hvtrain.hybrid.cluster import Cluster
from hvtrain.hybrid.prediction import Prediction, Shape, predict
from hvtrain.hybrid.reasons import amount, describe, duration, reason
from hvtrain.hybrid.speeds import Speeds

__all__ = ["Choice", "Plan", "amount", "describe", "duration", "occupied", "plan", "recommend", "shapes"]

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
        fewer: with ``replicas`` None: whether some devices may do without a replica. No replica is without samples
            then; and threads of a processor may be of use to fewer replicas.
        stages: the counts that come into question; None for all that the devices of a node can be grouped by.
        microbatches: the count; None for any.
        split: layers of each stage; None for the best.
    """

    replicas: int | None = None
    fewer: bool = False
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
    def machines(shape: Shape) -> Cluster:
        return occupied(cluster, shape) if choice.fewer else cluster

    predictions = tuple(predict(speeds, machines(shape), shape, global_batch, choice.split)
                        for shape in shapes(cluster, len(speeds.largest.layers), global_batch, choice))
    best = recommend(predictions, cluster)
    return Plan(cluster, global_batch, predictions, best,
                reason(predictions, best, cluster, machines(best.shape), global_batch))


def shapes(cluster: Cluster, layers: int, global_batch: int, choice: Choice) -> Iterator[Shape]:
    """The shapes of ``choice``. Raises UsageError if none has as many layers as stages, and devices for them."""
    stages = _stages(cluster, layers, choice)
    for count in stages:
        for replicas in _replicas(count, cluster, global_batch, choice):
            if choice.replicas is None and replicas > global_batch and count != stages[-1]:
                continue  # some would have no samples
            alone = choice.fewer and occupied(cluster, Shape(replicas, count, 1)).nodes == 1  # and has no network
            for microbatches in _microbatches(count, -(-global_batch // replicas), choice.microbatches):
                for recompute in choice.recompute:
                    if recompute and microbatches == 1 and False in choice.recompute:
                        continue  # what the only micro-batch keeps is there in its backward pass either way
                    for codec in choice.codecs[:1] if alone else choice.codecs:
                        yield Shape(replicas, count, microbatches, recompute, codec, choice.schedule)


def _stages(cluster: Cluster, layers: int, choice: Choice) -> list[int]:
    """The counts that the model has layers for, and a node devices."""
    here = -(-(choice.replicas or 1) // cluster.nodes)  # replicas of a node, at least
    wanted = choice.stages or tuple(
        count for count in range(1, min(layers, cluster.devices) + 1) if not cluster.devices % count)
    enough = [count for count in wanted if count <= layers]
    if not enough:
        raise UsageError(f"{min(wanted)} stages need at least {min(wanted)} layers, but the model can be cut into {layers} "
                         f"only. Set hybrid.stages to at most {layers}.")
    # Threads of a processor may be more than its cores, devices may not.
    found = [count for count in enough if cluster.cores is not None or here * count <= cluster.devices]
    if not found:
        raise _too_few_devices(here, min(enough), cluster.devices)
    return found


def _too_few_devices(replicas: int, stages: int, devices: int) -> UsageError:
    who = f"{stages} stages" if replicas == 1 else f"{replicas} replicas of {stages} stage{'s' if stages > 1 else ''}"
    advice = f"Set hybrid.stages to at most {devices // replicas}" if devices >= replicas else (
        f"Set launch.workers to at most {devices}")
    there = f"there {'is' if devices == 1 else 'are'} {devices} (--devices)"
    return UsageError(f"{who} need {replicas * stages} devices on each machine, {there}. {advice}.")


def _replicas(stages: int, cluster: Cluster, global_batch: int, choice: Choice) -> list[int]:
    """How many of so many stages, on all nodes."""
    if choice.replicas is not None:
        return [choice.replicas]
    most = max(1, cluster.devices // stages)
    if not choice.fewer:
        return [cluster.nodes * most]
    each = {most} if cluster.cores is None else {1 << power for power in range(most.bit_length())} | {most}
    return [cluster.nodes * here for here in sorted(each) if cluster.nodes * here <= global_batch] or [global_batch]


def occupied(cluster: Cluster, shape: Shape) -> Cluster:
    """The machines of ``cluster`` that ``shape`` takes: as few as have the devices for it, or threads on as many as it
    has replicas for."""
    each = max(1, cluster.devices // shape.stages) if cluster.cores is None else 1
    return replace(cluster, nodes=min(cluster.nodes, -(-shape.replicas // each)))


def _microbatches(stages: int, share: int, wanted: int | None) -> list[int]:
    if wanted is not None:
        return [min(wanted, share)]
    powers = {1 << power for power in range(MOST_MICROBATCHES.bit_length())}
    return sorted(count for count in powers | {stages * factor for factor in (1, 2, 4, 8)}
                  if count <= min(share, max(MOST_MICROBATCHES, stages)))


def recommend(predictions: Sequence[Prediction], cluster: Cluster) -> Prediction:
    """The fastest that fits; of those hardly slower the simplest. Raises UsageError if none fits.

    Stages that take turns only where nothing else fits: with one micro-batch they gain nothing, and how well more of
    them than there are cores do it is not predicted.
    """
    fitting = [found for found in predictions if found.fits]
    if not fitting:
        raise _nothing_fits(predictions, cluster)
    usable = [found for found in fitting if not found.shape.serial] or fitting
    usable = [found for found in usable if not found.crowded] or usable
    among, fastest = usable, math.inf
    for codec in CODECS:
        same = [found for found in usable if found.shape.codec == codec]
        if same and min(found.seconds for found in same) < (1 - WORTH_ROUNDING) * fastest:
            among, fastest = same, min(found.seconds for found in same)
    return min((found for found in among if found.seconds <= (1 + HARDLY) * fastest), key=_simplicity)


def _simplicity(found: Prediction) -> tuple:
    shape = found.shape
    return shape.stages, shape.recompute, shape.microbatches, shape.replicas, found.seconds


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
