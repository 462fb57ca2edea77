"""What a step takes in a given shape: passes by the clock, reductions behind them, the optimizer at the end.

Two stages; the gradients of a layer can travel once the last micro-batch's backward has passed it::

    stage 0   F F F F . B . B B [B:::::]                 ::: the last backward: layer by layer gradients are complete
    stage 1   . F B F B F B F [B:::]
    gradients                  [ stage 1 ][ stage 0 ]    one after another over the replica's link and network
                                           |--wait--|[update]
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Sequence

from hvtrain.errors import UsageError
from hvtrain.hybrid.clock import Makespan, step_time
from hvtrain.hybrid.cluster import Cluster
from hvtrain.hybrid.costs import LayerCost, ModelCosts
from hvtrain.hybrid.partition import Device, Partition, appraise, partition
from hvtrain.hybrid.schedule import peak
from hvtrain.hybrid.speeds import Speeds

BYTES_SENT = {"none": 1.0, "fp16": 0.5, "bf16": 0.5, "int8": 0.25}
"""Of each byte of float32 gradients, what crosses the network with each ``comm.codec``."""


@dataclass(frozen=True)
class Shape:
    """How a job is laid out: ``replicas`` of the model, each over ``stages`` devices.

    One stage is data parallelism, one replica model parallelism.
    """

    replicas: int
    stages: int
    microbatches: int
    recompute: bool = False
    codec: str = "none"
    schedule: str = "1f1b"

    @property
    def serial(self) -> bool:
        """Whether no two of its stages ever compute at the same time, because there is only one micro-batch."""
        return self.stages > 1 and self.microbatches == 1


@dataclass(frozen=True)
class Prediction:
    """A step in ``shape``. Times in seconds, sizes in bytes.

    Attributes:
        split: layers in each stage.
        seconds: the whole step.
        compute: until the last stage has ended its last backward pass.
        communication: while gradients travel; ``waiting``: the part of it that lies behind no backward pass.
        update: the optimizer's.
        bubble: the share of the stages' time in which they have nothing to do.
        memory: of each stage's device.
        sent: by a node over the network.
        threads: that each stage computes with.
        crowded: whether the stages of a node are more than its cores; then they take turns.
        problem: why this shape cannot be used; empty if it can.
    """

    shape: Shape
    split: tuple[int, ...]
    seconds: float
    compute: float
    communication: float
    waiting: float
    update: float
    bubble: float
    memory: tuple[int, ...]
    sent: int
    threads: int
    crowded: bool = False
    problem: str = ""

    @property
    def fits(self) -> bool:
        return not self.problem


def predict(speeds: Speeds, cluster: Cluster, shape: Shape, global_batch: int,
            split: Sequence[int] | None = None) -> Prediction:
    """The step of ``global_batch`` samples; ``split`` None for the best one.

    What exceeds the devices' memory is predicted too, and ``problem`` says so. Raises UsageError where the shape is
    impossible: more stages than layers, a split that does not fit the model.
    """
    share = -(-global_batch // shape.replicas)
    shape = replace(shape, microbatches=min(shape.microbatches, share))
    here = -(-shape.replicas // cluster.nodes)  # replicas of a node
    threads = cluster.threads(here, shape.stages)
    samples = -(-share // shape.microbatches)
    costs, found, problem, clock = _compute(speeds, cluster, replace(shape, codec="none"), samples, threads,
                                            tuple(split) if split is not None else None)
    stages = _stages(costs.layers, found.split)
    whole = sum(layer.parameters for layer in costs.layers)
    compute = clock.seconds
    crowded = cluster.cores is not None and here * shape.stages > cluster.cores
    within, between = _seconds_per_byte(cluster, shape, here)
    communication, ended = _reduce(stages, clock, within + between)
    waiting = max(0.0, ended - clock.seconds)
    if cluster.cores is not None and threads * here * shape.stages >= cluster.cores:
        # Who adds up gradients takes a core from who computes, so nothing of that is hidden.
        waiting = max(waiting, within * whole)
    waiting += cluster.latency if shape.replicas > 1 else 0.0
    update = _update(costs, cluster, stages) * (
        speeds.update_slowdown(samples, here, threads) if cluster.cores is not None else 1.0)
    crossing = 2 * (cluster.nodes - 1) / cluster.nodes * BYTES_SENT[shape.codec] if shape.replicas > 1 else 0.0
    return Prediction(
        shape, found.split, compute + waiting + update, compute, communication, waiting,
        update, 1 - math.fsum(clock.busy) / (shape.stages * compute) if compute else 0.0, found.memory,
        round(whole * crossing), threads, crowded, problem)


@lru_cache(maxsize=512)  # shapes differ in their codec only, again and again
def _compute(speeds: Speeds, cluster: Cluster, shape: Shape, samples: int, threads: int,
             split: tuple[int, ...] | None) -> tuple[ModelCosts, Partition, str, Makespan]:
    """Costs as they are with micro-batches of ``samples``, the split, why it does not fit if it does not, and the passes."""
    costs = _at_speed(speeds.at(samples, threads), cluster.speed)
    kept = [peak(shape.schedule, stage, shape.stages, shape.microbatches) for stage in range(shape.stages)]
    again = _repeats(speeds, shape, kept)
    found, problem = _partition(costs, cluster, shape, kept, again, split)
    stages = _stages(costs.layers, found.split)
    forward = [math.fsum(layer.forward for layer in stage) for stage in stages]
    backward = [math.fsum(layer.backward + twice * layer.forward for layer in stage) for stage, twice in zip(stages, again)]
    carried = [0.0 if cluster.cores is not None else stage[-1].output / cluster.link for stage in stages[:-1]]
    slowdown = _slowdown(speeds, cluster, shape, samples, threads)
    return costs, found, problem, step_time(shape.schedule, forward, backward, carried, shape.microbatches, slowdown)


def _at_speed(costs: ModelCosts, speed: float) -> ModelCosts:
    """In seconds of a device that is ``speed`` times as fast. What belongs to no layer counts for the last one."""
    layers = [replace(layer, forward=layer.forward / speed, backward=layer.backward / speed) for layer in costs.layers]
    layers[-1] = replace(layers[-1], forward=layers[-1].forward + costs.overhead / speed)
    return replace(costs, layers=tuple(layers), update=costs.update / speed)


def _slowdown(speeds: Speeds, cluster: Cluster, shape: Shape, samples: int, threads: int) -> list[float]:
    """By the number of a replica's stages that compute, with as many of each other replica of the node. Where there are more
    than cores, they take turns."""
    if cluster.cores is None:
        return []
    computing = [-(-shape.replicas // cluster.nodes) * count for count in range(1, shape.stages + 1)]
    return [speeds.slowdown(samples, min(count, cluster.cores), threads) * max(1.0, count / cluster.cores)
            for count in computing]


def _repeats(speeds: Speeds, shape: Shape, kept: Sequence[int]) -> list[bool]:
    """Whether each stage runs forward again: the last one has nothing to wait for, and with one micro-batch at a time backward
    follows right after forward as well."""
    return [shape.recompute and (speeds.always_recomputes or (stage < shape.stages - 1 and count > 1))
            for stage, count in enumerate(kept)]


def _partition(costs: ModelCosts, cluster: Cluster, shape: Shape, kept: Sequence[int], again: Sequence[bool],
               split: Sequence[int] | None) -> tuple[Partition, str]:
    """The split, and why it does not fit the memory if it does not."""

    def cut(memory: int | None) -> Partition:
        devices = [Device(memory=memory)] * shape.stages
        if split is not None:
            return appraise(costs, devices, split, in_flight=kept, recompute=shape.recompute, repeats=again)
        return partition(costs, devices, in_flight=kept, recompute=shape.recompute, repeats=again)

    free = cut(None)
    if cluster.memory is None or max(free.memory) <= cluster.memory:
        return free, ""
    try:
        return cut(cluster.memory), ""
    except UsageError as error:
        return free, str(error)


def _stages(layers: Sequence[LayerCost], split: Sequence[int]) -> list[Sequence[LayerCost]]:
    ends = [sum(split[:number + 1]) for number in range(len(split))]
    return [layers[end - length:end] for end, length in zip(ends, split)]


def _seconds_per_byte(cluster: Cluster, shape: Shape, here: int) -> tuple[float, float]:
    """What a byte of gradients takes: to be added up over the replicas of a node; then in a ring over the nodes.

    A ring of n sends 2 (n - 1) / n bytes for each (Patarasuk and Yuan, 2009).
    """
    within = 2 * (here - 1) / here / cluster.link
    between = 2 * (cluster.nodes - 1) / cluster.nodes * BYTES_SENT[shape.codec] / cluster.network
    return (within, between) if shape.replicas > 1 else (0.0, 0.0)


def _reduce(stages: Sequence[Sequence[LayerCost]], clock: Makespan, rate: float) -> tuple[float, float]:
    """Seconds in which gradients travel, and when the last has arrived."""
    complete = []
    for stage, end in zip(stages, clock.ready):
        for layer in stage:  # the last backward pass goes through them from the last to the first, and ends at `end`
            complete.append((end, layer.parameters * rate))
            end -= layer.backward
    arrived = 0.0
    for at, seconds in sorted(complete):
        arrived = max(arrived, at) + seconds if seconds else arrived
    return math.fsum(seconds for _, seconds in complete), arrived


def _update(costs: ModelCosts, cluster: Cluster, stages: Sequence[Sequence[LayerCost]]) -> float:
    """Stages on devices of their own are updated at the same time, threads of the processor one after another."""
    sizes = [sum(layer.parameters for layer in stage) for stage in stages]
    share = max(sizes) / sum(sizes) if cluster.cores is None and sum(sizes) else 1.0
    return costs.update * share
