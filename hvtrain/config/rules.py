"""Combinations of keys that make no sense together. Each rule is a generator over a whole job."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Iterator

if TYPE_CHECKING:
    from hvtrain.config.job import Job


MISSING = ('required, but missing; your task, as "module:attribute", for instance task:mnist (or instead task.script, a '
           "Python script that calls fit)")


@dataclass(frozen=True)
class Conflict:
    """A broken rule: ``key`` is the one to change, ``others`` are those that it clashes with."""

    key: str
    message: str
    others: tuple[str, ...] = ()


def conflicts(job: "Job") -> list[Conflict]:
    """All broken rules of ``job``, in the order of its sections."""
    return [conflict for rule in _RULES for conflict in rule(job)]


def _task(job: "Job") -> Iterator[Conflict]:
    target, script = job.task.target, job.task.script
    if target is None and script is None:
        yield Conflict("task.target", MISSING)
    if target is not None and script is not None:
        yield Conflict("task.script", f"script ({script}) and target ({target}) exclude each other; remove one",
                       ("task.target",))
    if script is not None and job.task.args:
        yield Conflict("task.args", "a script takes no args; write the settings into the script", ("task.script",))


def _length(job: "Job") -> Iterator[Conflict]:
    if job.train.epochs is not None and job.train.steps is not None:
        yield Conflict("train.steps", (
            f"steps ({job.train.steps}) and epochs ({job.train.epochs}) exclude each other; remove one "
            "(on the command line: train.epochs=null)"), ("train.epochs",))


def _batches(job: "Job") -> Iterator[Conflict]:
    micro, whole = job.data.micro_batch, job.data.global_batch
    if micro is not None and micro > whole:
        yield Conflict("data.micro_batch", (
            f"micro_batch ({micro}) is a part of global_batch ({whole}) and cannot be larger"),
            ("data.global_batch",))
    if job.data.sampling != "uniform" and not job.data.shuffle:
        yield Conflict("data.shuffle", (
            f"sampling: {job.data.sampling} draws samples at random, so shuffle cannot be false"),
            ("data.sampling",))


def _precision(job: "Job") -> Iterator[Conflict]:
    if job.train.precision != "fp16" and job.train.loss_scale != _default(job.train, "loss_scale"):
        yield Conflict("train.loss_scale", (
            f"only fp16 scales the loss; precision is {job.train.precision}"), ("train.precision",))
    if math.frexp(job.train.loss_scale)[0] != 0.5:
        yield Conflict("train.loss_scale", (
            f"expected a power of two, so that scaling changes no bit, got {job.train.loss_scale:g}"))


def _reference(job: "Job") -> Iterator[Conflict]:
    if job.framework != "numpy":
        return
    if job.train.precision != "fp32":
        yield Conflict("train.precision", (
            f"framework: numpy computes in the types of the model's own arrays, so it has no {job.train.precision}; "
            "leave precision out"), ("framework",))
    if job.optim.name not in ("sgd", "adam", "adamw"):
        yield Conflict("optim.name", f"framework: numpy has sgd, adam and adamw, not {job.optim.name}", ("framework",))


def _compilation(job: "Job") -> Iterator[Conflict]:
    if job.train.jit_compile and job.framework != "keras":
        yield Conflict("train.jit_compile", (
            "only framework: keras is compiled with XLA; with torch, have Task.model return torch.compile(model)"),
            ("framework",))


def _hybrid(job: "Job") -> Iterator[Conflict]:
    hybrid = job.hybrid
    if hybrid is None:
        return
    if job.framework == "numpy":
        yield Conflict("hybrid", "framework: numpy has no stages; remove the section, or use torch or keras", ("framework",))
    if job.task.script is not None:
        yield Conflict("hybrid", (
            f"stages need a task (task.target), because the model is measured before workers start; {job.task.script} is a "
            "script"), ("task.script",))
    if job.data.micro_batch is not None:
        yield Conflict("data.micro_batch", (
            "hybrid.microbatches says how a worker's share is cut; leave micro_batch out (on the command line: "
            "data.micro_batch=null)"), ("hybrid.microbatches",))
    if job.train.jit_compile:
        yield Conflict("train.jit_compile", "XLA compiles for one device; leave it out with hybrid", ("hybrid.stages",))
    stages = hybrid.stages if hybrid.stages != "auto" else None
    for key, parts, left_out in (("split", hybrid.split, "null"), ("devices", hybrid.devices, "auto")):
        if isinstance(parts, list) and len(parts) != (stages or len(parts)):
            yield Conflict(f"hybrid.{key}", f"expected one for each of the {stages} stages, got {len(parts)}: "
                           f"[{', '.join(map(str, parts))}]. Left out (hybrid.{key}={left_out}), hvtrain finds it",
                           ("hybrid.stages",))
    both = isinstance(hybrid.devices, list) and hybrid.split is not None
    if both and stages is None and len(hybrid.devices) != len(hybrid.split):
        yield Conflict("hybrid.devices", f"{len(hybrid.devices)} devices, but split makes {len(hybrid.split)} stages",
                       ("hybrid.split",))


def _world_size(job: "Job") -> Iterator[Conflict]:
    low, high, workers = job.elastic.min_workers, job.elastic.max_workers, job.launch.workers
    if high is not None and low > high:
        yield Conflict("elastic.min_workers", (
            f"min_workers ({low}) is above max_workers ({high})"), ("elastic.max_workers",))
    elif workers is not None and (workers < low or (high is not None and workers > high)):
        bounds = f"at least {low}" if high is None else f"{low} to {high}"
        yield Conflict("launch.workers", (
            f"{workers} workers, but elastic.min_workers and elastic.max_workers ask for {bounds}"),
            ("elastic.min_workers", "elastic.max_workers"))


def _resizing(job: "Job") -> Iterator[Conflict]:
    elastic = job.elastic
    if elastic.lr_scaling != _default(elastic, "lr_scaling") and elastic.on_resize != "keep_local_batch":
        yield Conflict("elastic.lr_scaling", (
            "the learning rate follows the batch only with on_resize: keep_local_batch"), ("elastic.on_resize",))
    if elastic.on_resize == "keep_local_batch" and job.launch.workers and job.data.global_batch % job.launch.workers:
        yield Conflict("elastic.on_resize", (
            f"keep_local_batch needs a global_batch ({job.data.global_batch}) that can be divided by launch.workers "
            f"({job.launch.workers})"), ("data.global_batch",))


def _hosts(job: "Job") -> Iterator[Conflict]:
    ways = [key for key in ("hosts", "hostfile", "host_discovery_script") if getattr(job.launch, key) is not None]
    for key in ways[1:]:
        yield Conflict(f"launch.{key}", f"{ways[0]} says which hosts there are already; remove one of them",
                       (f"launch.{ways[0]}",))


def _schedule(job: "Job") -> Iterator[Conflict]:
    schedule, where, name = job.optim.schedule, "optim.schedule", ("optim.schedule.name",)
    if schedule.name == "step":
        if schedule.every is None:
            yield Conflict(f"{where}.every", (
                'the step schedule needs the interval between two reductions, for instance every: "1 epoch" '
                ''), name)
    elif schedule.every is not None:
        yield Conflict(f"{where}.every", (
            f"only the step schedule has `every`; {schedule.name} does not use it"), name)
    # `factor` and `final` always have a value, so only one that differs from the default tells a wish.
    if schedule.name != "step" and schedule.factor != _default(schedule, "factor"):
        yield Conflict(f"{where}.factor", (
            f"only the step schedule has `factor`; {schedule.name} does not use it"), name)
    if schedule.name not in ("linear", "cosine") and schedule.final != _default(schedule, "final"):
        yield Conflict(f"{where}.final", (
            f"only the linear and cosine schedules have `final`; {schedule.name} does not use it"), name)


def _default(section: object, field: str) -> object:
    return type(section).model_fields[field].default  # type: ignore[attr-defined]


def _optimizer(job: "Job") -> Iterator[Conflict]:
    optim = job.optim
    settings = [("optim", optim), *((f"optim.groups.{i}", group) for i, group in enumerate(optim.groups))]
    for where, section in settings:
        if section.momentum is not None and optim.name not in ("sgd", "rmsprop"):
            hint = "; its counterpart is args: {betas: [0.9, 0.999]}" if optim.name.startswith("adam") else ""
            yield Conflict(f"{where}.momentum", (
                f"{optim.name} has no momentum (sgd and rmsprop have){hint}"), ("optim.name",))
    for key in ("lr", "weight_decay", "momentum", "params"):
        if key in optim.args:
            place = "optim.groups" if key == "params" else f"optim.{key}"
            yield Conflict(f"optim.args.{key}", f"{key} does not belong in args; set {place} instead")
    for i, group in enumerate(optim.groups):
        for key in ("lr", "weight_decay", "momentum"):
            if group.freeze and getattr(group, key) is not None:
                yield Conflict(f"optim.groups.{i}.{key}", (
                    f"the parameters of this group are frozen (freeze: true), so {key} would do nothing"),
                    (f"optim.groups.{i}.freeze",))


def _evaluation(job: "Job") -> Iterator[Conflict]:
    if job.eval.every is not None:
        return
    if job.train.early_stopping is not None:
        yield Conflict("train.early_stopping", (
            "early stopping watches an evaluation metric, but eval.every is null, so nothing is evaluated"),
            ("eval.every",))
    if job.checkpoint.best is not None:
        yield Conflict("checkpoint.best", (
            "the best checkpoint is chosen by an evaluation metric, but eval.every is null, so nothing is "
            "evaluated"), ("eval.every",))


_RULES = (_task, _length, _precision, _reference, _compilation, _hybrid, _batches, _world_size, _resizing, _hosts, _schedule,
          _optimizer, _evaluation)
