"""``hvtrain plan``: a job file, and machines that need not be there -> a plan, and the command that trains so."""

from __future__ import annotations

import math
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Sequence

from hvtrain.config import Job, load
from hvtrain.config.hybrid import HybridConfig
from hvtrain.engine.machine import cores
from hvtrain.errors import UsageError
from hvtrain.hybrid import splits
from hvtrain.hybrid.cluster import BUS, LINK, NETWORK, Cluster
from hvtrain.hybrid.measurement import FILE_NAME, Measurement
from hvtrain.hybrid.planner import Choice, Plan, amount, describe, duration, occupied, plan
from hvtrain.hybrid.prediction import Prediction
from hvtrain.launch import measurer
from hvtrain.launch.settling import MOST_THREAD_STAGES, chosen_threads, stages_of, threads_each


@dataclass(frozen=True)
class Wishes:
    """What the command line says of the machines; None for what it leaves open. Sizes in bytes, rates in bytes per second."""

    nodes: int = 1
    devices: int | None = None
    memory: int | None = None
    network: float | None = None
    link: float | None = None
    speed: float = 1.0


@dataclass(frozen=True)
class Drawn:
    """A ``plan``, the ``measurement`` under it, the ``command`` that trains so, and two lines of ``head`` for people.

    ``given`` is the shape that the job file asks for, in words, and what it would take; empty where it asks for none.
    """

    plan: Plan
    measurement: Measurement
    command: str
    head: str
    given: str = ""


def draw_up(config: str, overrides: Sequence[str], wishes: Wishes, *, fresh: bool, say: Callable[[str], None]) -> Drawn:
    """Measure the model of the job file ``config``, unless its run has a measurement, and plan for ``wishes``.

    Raises:
        ConfigError: the job file or an override has mistakes.
        UsageError: the job has no task of its own, or fits no shape.
        and what :func:`hvtrain.launch.measurer.obtain` raises.
    """
    job = load(config, overrides)
    if job.task.target is None:
        raise UsageError(f"{config} trains by a script ({job.task.script}); a plan takes a job with a task (task.target), "
                         "whose model can be measured")
    if job.framework == "numpy":
        raise UsageError("framework: numpy has no stages, so there is nothing to plan; a plan takes torch or keras")
    hybrid = job.hybrid or HybridConfig()
    measured = job.model_copy(update={"hybrid": hybrid})
    workers = job.launch.workers or 1  # as `hvtrain run` would, which then takes this measurement
    found = measurer.obtain(measured, str(Path(config).resolve().parent), workers=workers,
                            threads=threads_each(job, 1), fresh=fresh,  # those of a single one: it is compared, too
                            before=lambda: say(f"measuring the model of {config} ..."), say=say)
    path = measurer.keep(job.run.dir, found)
    cluster = _cluster(job, found, wishes, cores())
    drawn = plan(found.speeds, cluster, job.data.global_batch, _choice(hybrid, found, cluster))
    return Drawn(drawn, found, command(config, overrides, job, drawn), _head(config, drawn, found, path),
                 _given(job, found, drawn, _workers(job, wishes)))


def _cluster(job: Job, found: Measurement, wishes: Wishes, here: int) -> Cluster:
    """Devices that were asked for are devices of their own; else they are what this machine has."""
    own = wishes.devices is not None or found.gpus > 0
    given = job.hybrid.memory.bytes if job.hybrid is not None and job.hybrid.memory is not None else found.memory
    return Cluster(nodes=wishes.nodes, devices=wishes.devices or found.gpus or here, memory=wishes.memory or given,
                   network=wishes.network or NETWORK, link=wishes.link or (BUS if own else LINK),
                   cores=None if own else here, most_threads=None if own else chosen_threads(job), speed=wishes.speed)


def _choice(hybrid: HybridConfig, found: Measurement, cluster: Cluster) -> Choice:
    codecs = ("none",) if cluster.nodes == 1 else ("none", "fp16") if found.gpus else ("none", "fp16", "bf16", "int8")
    stages = None
    if cluster.cores is not None and cluster.memory is not None:  # threads can be more than cores
        stages = tuple(range(1, max(cluster.devices, MOST_THREAD_STAGES) + 1))
    return Choice(fewer=True, stages=stages, codecs=codecs, schedule=hybrid.schedule)


def _workers(job: Job, wishes: Wishes) -> int | None:
    """As many as `hvtrain run` would start; None where the plan is for other machines, about which the job file
    says nothing."""
    other = wishes.nodes > 1 or wishes.devices is not None or job.launch.names_hosts
    return None if other else job.launch.workers or 1


def _given(job: Job, found: Measurement, drawn: Plan, workers: int | None) -> str:
    """What the shape that ``job`` asks for would take on the same machines, with so many ``workers`` or, if None, with
    as many as are good there; or why it cannot be."""
    stages = stages_of(job)
    if job.hybrid is None or stages is None:
        return ""
    hybrid = job.hybrid
    try:
        if hybrid.split is not None:
            splits.check(hybrid.split, [layer.name for layer in found.costs.layers])
        microbatches = hybrid.microbatches if isinstance(hybrid.microbatches, int) else None
        split = tuple(hybrid.split) if hybrid.split is not None else None
        choice = Choice(replicas=workers, fewer=True, stages=(stages,), microbatches=microbatches, split=split,
                        recompute=(hybrid.recompute,), codecs=(job.comm.codec,), schedule=hybrid.schedule)
        own = plan(found.speeds, drawn.cluster, job.data.global_batch, choice).best
    except UsageError as error:
        return f"as the job file has it: impossible. {error}"
    if (own.shape, own.split) == (drawn.best.shape, drawn.best.split):
        return "as the job file has it: just so"
    taking = ", if its stages take turns well: they are more than the cores"
    return (f"as the job file has it: {describe(own.shape)}, layers split as {' + '.join(map(str, own.split))}, "
            f"{duration(own.seconds)} a step, {own.seconds / drawn.best.seconds:.2f} times as long"
            + (taking if own.crowded and not drawn.best.crowded else ""))


def command(config: str, overrides: Sequence[str], job: Job, drawn: Plan) -> str:
    """What to type to train in the recommended shape."""
    best, shape = drawn.best, drawn.best.shape
    nodes = occupied(drawn.cluster, shape).nodes
    settings = _settings(best, job, drawn.global_batch)
    settings = [*(each for each in overrides if not _said_by(each, settings)), *settings]
    if nodes == 1:
        return shlex.join(["hvtrain", "run", config, "-np", str(shape.replicas), *settings])
    slots = -(-shape.replicas // nodes) * shape.stages
    hosts = f"HOST1:{slots},HOST2:{slots}" + (",..." if nodes > 2 else "")
    start = f"horovodrun -np {shape.replicas * shape.stages} -H {hosts} "
    return start + shlex.join(["hvtrain", "run", config, *settings])


def _said_by(override: str, settings: Sequence[str]) -> bool:
    """Whether ``settings`` give the same key another value, or the section that it is in."""
    key = override.partition("=")[0]
    return any(f"{key}.".startswith(f"{each.partition('=')[0]}.") for each in settings)


def _settings(best: Prediction, job: Job, global_batch: int) -> list[str]:
    shape, hybrid = best.shape, job.hybrid
    other = [f"comm.codec={shape.codec}"] if shape.codec != job.comm.codec else []
    other += [f"elastic.min_workers={shape.replicas}"] if job.elastic.min_workers > shape.replicas else []
    other += [f"elastic.max_workers={shape.replicas}"] if (job.elastic.max_workers or math.inf) < shape.replicas else []
    whole = shape.stages == 1 and not shape.recompute
    if whole and shape.microbatches > 1:
        other = [f"data.micro_batch={-(-global_batch // (shape.replicas * shape.microbatches))}", *other]
    elif job.data.micro_batch is not None:
        other = ["data.micro_batch=null", *other]
    if whole:
        return [*(["hybrid=null"] if hybrid is not None else []), *other]
    settings = [f"hybrid.stages={shape.stages}", f"hybrid.microbatches={shape.microbatches}"]
    if shape.recompute != (hybrid or HybridConfig()).recompute:
        settings += [f"hybrid.recompute={str(shape.recompute).lower()}"]
    settings += ["hybrid.split=null"] if hybrid is not None and hybrid.split is not None else []
    settings += ["hybrid.devices=auto"] if hybrid is not None and isinstance(hybrid.devices, list) else []
    return settings + other


def _head(config: str, drawn: Plan, found: Measurement, path: Path) -> str:
    cluster, costs = drawn.cluster, found.costs
    what = splits.counted(cluster.devices, "core" if cluster.cores is not None else "device")
    each = f" of {amount(cluster.memory)}" if cluster.memory is not None else ""
    machines = f"{cluster.nodes} machines, each with " if cluster.nodes > 1 else ""
    network = f", network {cluster.network * 8 / 1e9:g} Gbit/s" if cluster.nodes > 1 else ""
    times = sum(layer.forward + layer.backward for layer in costs.layers) / costs.batch
    faster = f"; the devices are taken to be {cluster.speed:g} times as fast" if cluster.speed != 1 else ""
    size = sum(layer.parameters for layer in costs.layers)
    return (f"plan for {config}: {machines}{what}{each}{network}; {drawn.global_batch:,} samples a step"
            f"\nmeasured here: {splits.counted(len(costs.layers), 'layer')}, {amount(size)} of parameters, {duration(times)} a "
            f"sample forward and backward on {costs.device}{faster} (kept in {os.path.join(path.parent, FILE_NAME)})"
            + (f"\nno stages are compared: {found.whole}" if found.whole else ""))
