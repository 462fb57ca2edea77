"""The Keras 3 adapter, on TensorFlow: one training step as a transaction over flat gradient buckets."""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import Any, Callable, Iterable, Iterator, Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

from hvtrain import probe
from hvtrain.adapters import sharing
from hvtrain.adapters.base import Reduced
from hvtrain.adapters.keras import optimizers, pipeline, refusals, variables as kinds
from hvtrain.adapters.keras.batches import tensors
from hvtrain.adapters.keras.calling import forward
from hvtrain.adapters.keras.precision import Precision
from hvtrain.adapters.keras.statistics import Statistics
from hvtrain.adapters.keras.variables import Variables
from hvtrain.adapters.keras.whole import layout
from hvtrain.checkpoint.blob import Blob
from hvtrain.comm import flat
from hvtrain.comm.codecs import EngineCodec
from hvtrain.config import Job
from hvtrain.engine import horovod_tensorflow
from hvtrain.engine.world import SoloWorld, World
from hvtrain.errors import Diverged, RoundBroken, UsageError, UserCodeError
from hvtrain.task import Task

MEGABYTE = 1 << 20


class KerasAdapter:
    """Fulfils :class:`hvtrain.adapters.base.Adapter`.

    Args:
        job: the resolved job.
        task: the user's task.
        threads: CPU threads this process computes with.
        local_rank: which of the host's devices to use, where there are several.
        tick: called whenever a micro-batch is done.
    """

    model: keras.Model
    optimizer: keras.optimizers.Optimizer

    def __init__(self, job: Job, task: Task, *, threads: int, local_rank: int = 0,
                 tick: Callable[[], None] = lambda: None):
        self._job, self._task, self._world, self._tick = job, task, SoloWorld(), tick
        self._stateful = getattr(task, "stateful_metrics", None)  # metrics that keep a state; see hvtrain.keras
        self._layout = layout(job, threads, local_rank)

    def build(self) -> None:
        job = self._job
        keras.utils.set_random_seed(job.run.seed % 2**32)
        self._precision = Precision(job.train.precision, job.train.loss_scale)
        with self._precision.policy():
            model = self._task.model()
        if not isinstance(model, keras.Model):
            raise UserCodeError(f"Task.model gave a {type(model).__name__}; it must give a keras.Model")
        self.model = model
        self._overflow = False
        if kinds.built(model) and not self._layout.needs_example:
            self._complete(None)

    def _complete(self, batch: Any) -> None:
        """Make what needs the model's variables."""
        job = self._job
        self._layout.lay(self._task, self.model, batch)
        refusals.check_model(self.model, job.train.precision)
        optimizers.freeze(self.model, job.optim)
        self._variables = Variables(self.model)
        self.optimizer = optimizers.build(self._task, self._variables, job.optim, job.train.precision)
        rescaled = job.elastic.on_resize == "keep_local_batch" and job.elastic.lr_scaling != "none"
        self._rate = optimizers.Rate(self.optimizer, job.optim, rescaled)
        self._slots = optimizers.state(self.optimizer, self._variables)
        trainable = self._variables.trainable
        self._codec = EngineCodec(job.comm.codec)
        self._shapes = [tuple(v.shape) for v in trainable.values()]
        self._plan = flat.plan(self._shapes, [_summable(name, v, job) for name, v in trainable.items()],
                               int(job.comm.bucket_mb * MEGABYTE), int(job.comm.first_bucket_mb * MEGABYTE),
                               self._layout.stages(list(trainable.values())))
        self._averages = {name: kinds.beside(v) for name, v in trainable.items()} if job.train.ema is not None else {}
        self._steps = self._layout.steps(
            self._task, self.model, self._variables, self.optimizer, self._plan, self._take,
            [(average, trainable[name]) for name, average in self._averages.items()], job.train.jit_compile)
        self._buckets: flat.FlatBuckets | None = None
        self._statistics = Statistics({})

    def warm_up(self, example: Callable[[], tuple[Any, int]]) -> None:
        batch, count = example()
        batch = tensors(batch)
        if not hasattr(self, "_variables"):
            if not kinds.built(self.model):
                self._call_once(batch)
            self._complete(batch)
        # A step of which nothing remains.
        before = {name: kinds.array(variable) for name, variable in self._variables.others.items()}
        self._steps.rehearse(batch, count, lambda number: self._seeds(0, number))
        for name in self._steps.changed:
            self._variables.others[name].assign(before[name])
        self._statistics = Statistics(self._variables.statistics((), self._task.averaged_buffers))
        zeros = horovod_tensorflow.zeros if self._job.comm.shared_memory else None
        self._buckets = flat.FlatBuckets(self._shapes, self._plan, self._statistics.elements, codec=self._codec,
                                         zeros=zeros)
        self._buckets.use(self._world)
        self._steps.trace_update(self._buckets.views)
        if self._stateful is not None:
            self._stateful.build(forward(self._task, self.model, batch, False), batch)

    def _call_once(self, batch: Any) -> None:
        """Have the model make what variables it does not make before its first call."""
        keras.utils.set_random_seed(self._job.run.seed % 2**32)  # whatever has been drawn since
        with self._precision.policy():
            batch = pipeline.through(self._task, batch, "train", tf.zeros(2, tf.int32))
            forward(self._task, self.model, batch, False)

    def join(self, world: World) -> None:
        self._world = world
        if self._buckets is not None:
            self._buckets.use(world)

    def seed(self, step: int) -> None:
        self._step = step
        self._world.noise(self._job.run.seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9)

    def gradients(self, batches: Sequence[Any], counts: Sequence[int], total: int,
                  flags: Sequence[float]) -> Reduced:
        assert self._buckets is not None
        self._buckets.begin()
        self._statistics.keep()
        try:
            loss_sum = self._steps.step(batches, counts, 1.0 / total, self._precision.factor,
                                        lambda number: self._seeds(self._step, number), self._buckets.pass_begins,
                                        self._tick)
            self._statistics.write(self._buckets.statistics, sum(counts) / total)
            summed, flags_sum, waited, hidden = self._buckets.finish(loss_sum, flags, bool(batches))
        except RoundBroken:
            self._statistics.put_back()
            raise
        scale = self._precision.scale
        self._overflow = scale is not None and scale.overflown(summed, self._buckets.finite)
        return Reduced(summed / total, flags_sum, waited, hidden, self._overflow)

    def apply(self, step: int, factor: float) -> Mapping[str, float]:
        assert self._buckets is not None
        values = {"lr": self._rate.set(factor)}
        scale = self._precision.scale
        if scale is not None:
            values |= {"loss_scale": scale.value, "skipped": float(self._overflow)}
        if scale is not None and self._overflow:
            scale.overflow()
            self._statistics.put_back()
            return values
        undo = 1.0 / self._precision.factor
        limit = self._job.train.grad_clip
        if limit is not None:
            norm = self._buckets.norm() * undo
            if not math.isfinite(norm):  # the same on all ranks: the gradients have been reduced
                raise Diverged(f"the gradient of step {step + 1} is not finite. Nothing of it was applied. Lower "
                               "optim.lr or look at the data of that step")
            undo *= min(1.0, limit / (norm + 1e-6))
            values["grad_norm"] = norm
        if undo != 1.0:
            self._buckets.scale(undo)
        probe.reached("optimizer")
        # As PyTorch's adapter: the average forgets the initial weights quickly, however long its memory is later.
        decay = min(self._job.train.ema or 0.0, (1 + step) / (10 + step))
        self._steps.update(decay)
        if scale is not None:
            scale.good()
        self._statistics.adopt(self._buckets.statistics)
        return values

    def evaluate(self, batches: Iterable[tuple[Any, int]], ema: bool) -> Mapping[str, float]:
        sums: dict[str, float] = {}
        samples = 0
        if self._stateful is not None:
            self._stateful.reset()
        with self._averaged(ema):
            for batch, count in batches:
                for name, value in self._steps.evaluate(tensors(batch), count).items():
                    sums[name] = sums.get(name, 0.0) + value
                samples += count
        means = sharing.means(self._world, sums, samples)
        if self._stateful is None:
            return means
        return {**means, **self._stateful.result(self.total(self._stateful.state(), "eval.stateful"))}

    @contextmanager
    def _averaged(self, wanted: bool) -> Iterator[None]:
        """Within this context the model computes with the averages, where there are some."""
        averages = self._averages if wanted else {}
        kept = {name: kinds.array(self._variables.trainable[name]) for name in averages}
        try:
            for name, average in averages.items():
                self._variables.trainable[name].assign(average)
            yield
        finally:
            for name, value in kept.items():
                self._variables.trainable[name].assign(value)

    def finite(self) -> bool:
        with np.errstate(all="ignore"):
            return all(bool(np.isfinite(kinds.array(v, copy=False).astype(np.float32, copy=False).sum()))
                       for v in self._variables.trainable.values())

    def parameter_count(self) -> int:
        return sum(int(np.prod(shape)) for shape in self._shapes)

    def export(self, copy: bool = True) -> dict[str, dict[str, Blob]]:
        groups = {"model": kinds.export(self._variables.weights, copy), "optimizer": kinds.export(self._slots, copy)}
        if self._averages:
            groups["ema"] = {name: Blob.from_numpy(average.numpy()) for name, average in self._averages.items()}
        return groups

    def scalars(self) -> dict[str, Any]:
        scale = self._precision.scale
        values: dict[str, Any] = {"rate": self._rate.read()}
        return values if scale is None else {**values, "loss_scale": scale.export()}

    def restore(self, groups: Mapping[str, Mapping[str, Blob]], scalars: Mapping[str, Any]) -> None:
        kinds.restore(self._variables.weights, groups["model"], "model")
        kinds.restore(self._slots, groups.get("optimizer", {}), "optimizer")
        for name, average in self._averages.items():
            # A run that switches the average on later starts it from the weights.
            average.assign(groups.get("ema", groups["model"])[name].to_numpy())
        self._rate.take(scalars["rate"])
        if self._precision.scale is not None and "loss_scale" in scalars:
            self._precision.scale.restore(scalars["loss_scale"])

    def total(self, values: Sequence[float], name: str) -> list[float]:
        return sharing.total(self._world, values, name)

    def share(self, value: Any, root: int, name: str) -> Any:
        return sharing.share(self._world, value, root, name)

    def share_state(self, root: int) -> int:
        return sharing.share_state(self._world, self, root, self._tick)

    def _take(self, index: int, gradient: np.ndarray | None) -> None:
        if self._buckets is not None:  # not while warming up
            self._buckets.put(index, gradient)

    def _seeds(self, step: int, micro_batch: int) -> np.ndarray:
        """A seed for each of the model's random generators, from (seed, step, rank, micro-batch)."""
        entropy = [self._job.run.seed, step, self._world.rank, micro_batch]
        count = self._steps.seeds
        return np.random.SeedSequence(entropy).generate_state(2 * count, np.uint32).reshape(count, 2)


def _summable(name: str, variable: Any, job: Job) -> str:
    dtype = str(variable.dtype)
    if dtype not in ("float32", "float64", "float16") or (job.comm.codec != "none" and dtype != "float32"):
        raise UsageError(f"the variable {name!r} is {dtype}, whose gradients "
                         + (f"comm.codec: {job.comm.codec} cannot compress. Set comm.codec=none" if dtype.startswith("float")
                            else "cannot be added up")
                         + ", or keep the model in float32 (with train.precision: bf16 or fp16 it computes in half "
                           "precision all the same)")
    return dtype
