"""The reference adapter: what an adapter must do, in plain NumPy, from top to bottom in the order in which it happens.

It trains models with hand-written gradients (:mod:`hvtrain.adapters.reference_model`), and it is what the other
adapters are tested against. They take the same steps; what they add is what their frameworks need: tracing, devices,
half precision.

::

    build       model and optimizer from the run's seed; flat buckets for the gradients
    join        the world that everything from here on is done with; again whenever another round has formed
    ---- for each step
    seed        random numbers follow from (seed, step, rank)
    gradients   micro-batch by micro-batch: losses, gradients --> buckets --full--> a sum over the ranks begins
                loss, flags, statistics --> tail of the last bucket; wait for all sums
                   RoundBroken here: nothing has happened
    apply       clip --> optimizer --> statistics --> averages; nothing here can fail for another rank's reason
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import Any, Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from hvtrain import probe, tracing
from hvtrain.adapters import reference_model, sharing
from hvtrain.adapters.base import Reduced
from hvtrain.adapters.reference_model import Model
from hvtrain.adapters.reference_optimizer import Optimizer
from hvtrain.checkpoint.blob import Blob
from hvtrain.comm import flat
from hvtrain.comm.codecs import EngineCodec
from hvtrain.config import Job
from hvtrain.engine import horovod_numpy
from hvtrain.engine.world import SoloWorld, World
from hvtrain.errors import CheckpointDamaged, Diverged, UsageError, UserCodeError
from hvtrain.task import Task

MEGABYTE = 1 << 20
Arrays = Mapping[str, np.ndarray]


class ReferenceAdapter:
    """Fulfils :class:`hvtrain.adapters.base.Adapter`.

    Args:
        job: the resolved job.
        task: the user's task. Its ``loss`` and ``metrics`` are for evaluation; in training the model gives the losses.
        threads: has no influence: NumPy's library read its own variable, OPENBLAS_NUM_THREADS, when it was imported.
        local_rank: has no influence, there is but one device.
        tick: called whenever a micro-batch is done.
    """

    model: Model
    optimizer: Optimizer

    def __init__(self, job: Job, task: Task, *, threads: int, local_rank: int = 0,
                 tick: Callable[[], None] = lambda: None):
        self._job, self._task, self._tick = job, task, tick
        self._world: World = SoloWorld()

    # Once ------------------------------------------------------------------------------------------------
    def build(self) -> None:
        job = self._job
        np.random.seed(job.run.seed % 2**32)  # every rank builds the same model
        self.model = self._task.model()
        reference_model.check(self.model)
        if self._task.optimizer([]) is not None:
            raise UserCodeError("framework: numpy takes no optimizer of the task's own: have Task.optimizer give None")
        self._parameters = dict(self.model.parameters)
        self._statistics = dict(getattr(self.model, "statistics", {}))
        self.optimizer = Optimizer(self._parameters, job.optim)
        self._trainable = self.optimizer.trainable
        for name, parameter in self._trainable.items():
            if job.comm.codec != "none" and parameter.dtype != np.float32:
                raise UsageError(f"comm.codec: {job.comm.codec} compresses float32 gradients, but the parameter "
                                 f"{name!r} is {parameter.dtype}. Keep the model in float32, or set comm.codec=none")
        # All gradients of a step lie in a few long vectors, of the same order and sizes on every rank: so sums are
        # taken in the same order in every step, and the first is under way while others are still computed.
        shapes = [parameter.shape for parameter in self._trainable.values()]
        plan = flat.plan(shapes, [parameter.dtype.name for parameter in self._trainable.values()],
                         int(job.comm.bucket_mb * MEGABYTE), int(job.comm.first_bucket_mb * MEGABYTE))
        self._buckets = flat.FlatBuckets(shapes, plan, sum(array.size for array in self._statistics.values()),
                                         codec=EngineCodec(job.comm.codec),
                                         zeros=horovod_numpy.zeros if job.comm.shared_memory else None)
        self._averages = {name: p.copy() for name, p in self._trainable.items()} if job.train.ema is not None else {}

    def warm_up(self, example: Callable[[], tuple[Any, int]]) -> None:
        pass  # nothing is slow at first

    def join(self, world: World) -> None:
        self._world = world
        self._buckets.use(world)

    # A step ----------------------------------------------------------------------------------------------
    def seed(self, step: int) -> None:
        self._step = step
        # Of lossy codecs, and therefore the same on all ranks.
        self._world.noise(self._job.run.seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9)

    def gradients(self, batches: Sequence[Any], counts: Sequence[int], total: int,
                  flags: Sequence[float]) -> Reduced:
        before = {name: array.copy() for name, array in self._statistics.items()}
        self._buckets.begin()
        try:
            loss_sum = 0.0
            for number, (batch, count) in enumerate(zip(batches, counts)):
                # In the last pass a bucket is complete, and is reduced, as soon as all its gradients are there.
                self._buckets.pass_begins(number == 0, number == len(batches) - 1)
                with tracing.span(tracing.COMPUTE, "forward and backward", number):
                    loss_sum += self._compute(batch, count, total, number)
                self._tick()
            changes = [(array - before[name]).ravel() for name, array in self._statistics.items()]
            if changes:  # each rank's counts by its share of the batch
                self._buckets.statistics[:] = np.concatenate(changes) * (sum(counts) / total)
            summed, flags_sum, waited, hidden = self._buckets.finish(loss_sum, flags, bool(batches))
        finally:  # if the round broke, nothing has happened; if not, apply() adds what all ranks have found
            _overwrite(self._statistics, before)
        return Reduced(summed / total, flags_sum, waited, hidden)

    def _compute(self, batch: Any, count: int, total: int, number: int) -> float:
        """Hand over the gradients of a micro-batch, the last parameter's first; returns its summed loss."""
        random = np.random.default_rng([self._job.run.seed, self._step, self._world.rank, number])
        probe.reached("forward")
        losses, gradients = self.model.losses_and_gradients(batch, random)
        reference_model.check_result(losses, gradients, count, self._trainable)
        for index, name in reversed(list(enumerate(self._trainable))):
            self._buckets.put(index, gradients[name] / total)
        return float(np.sum(losses))

    def apply(self, step: int, factor: float) -> Mapping[str, float]:
        values = {"lr": self._job.optim.lr * factor}
        limit = self._job.train.grad_clip
        if limit is not None:
            norm = self._buckets.norm()
            if not math.isfinite(norm):  # the same on all ranks: the gradients have been reduced
                raise Diverged(f"the gradient of step {step + 1} is not finite. Nothing of it was applied. Lower "
                               "optim.lr or look at the data of that step")
            self._buckets.scale(min(1.0, limit / (norm + 1e-6)))
            values["grad_norm"] = norm
        probe.reached("optimizer")
        self.optimizer.step(dict(zip(self._trainable, self._buckets.views)), step, factor)
        changes = self._buckets.statistics
        for array in self._statistics.values():
            array += changes[:array.size].reshape(array.shape).astype(array.dtype)
            changes = changes[array.size:]
        # Whatever its memory is later, the average forgets the initial weights quickly.
        decay = min(self._job.train.ema or 0.0, (1 + step) / (10 + step))
        for name, average in self._averages.items():
            average += (1 - decay) * (self._trainable[name] - average)
        return values

    # Between steps ---------------------------------------------------------------------------------------
    def evaluate(self, batches: Iterable[tuple[Any, int]], ema: bool) -> Mapping[str, float]:
        sums: dict[str, float] = {}
        samples = 0
        with self._averaged(ema):
            for batch, count in batches:
                outputs = self.model(self._task.inputs(batch))
                values = {"loss": self._task.loss(outputs, batch), **self._task.metrics(outputs, batch)}
                for name, value in values.items():
                    sums[name] = sums.get(name, 0.0) + _sum(name, value, count)
                samples += count
        return sharing.means(self._world, sums, samples)

    @contextmanager
    def _averaged(self, wanted: bool) -> Iterator[None]:
        """Within this context the model computes with the averages, where there are some."""
        averages = self._averages if wanted else {}
        kept = {name: self._trainable[name].copy() for name in averages}
        try:
            _overwrite(self._trainable, averages)
            yield
        finally:
            _overwrite(self._trainable, kept)

    def finite(self) -> bool:
        return all(bool(np.isfinite(parameter).all()) for parameter in self._trainable.values())

    def parameter_count(self) -> int:
        return sum(parameter.size for parameter in self._trainable.values())

    # State -----------------------------------------------------------------------------------------------
    def _groups(self) -> dict[str, Arrays]:
        """Everything that determines the next step, beside the step's number."""
        groups: dict[str, Arrays] = {
            "model": {**self._parameters, **self._statistics}, "optimizer": self.optimizer.state}
        return {**groups, "ema": self._averages} if self._averages else groups

    def export(self, copy: bool = True) -> dict[str, dict[str, Blob]]:
        return {group: {name: Blob.from_numpy(array.copy() if copy else array) for name, array in arrays.items()}
                for group, arrays in self._groups().items()}

    def scalars(self) -> dict[str, Any]:
        return {}

    def restore(self, groups: Mapping[str, Mapping[str, Blob]], scalars: Mapping[str, Any]) -> None:
        found = dict(groups)
        if self._averages and "ema" not in groups:  # they were switched on just now: they start from the weights
            found["ema"] = {name: groups["model"][name] for name in self._averages if name in groups["model"]}
        for group, arrays in self._groups().items():  # all is looked at before anything is changed
            _check_fit(arrays, found.get(group, {}), group)
        for group, arrays in self._groups().items():
            _overwrite(arrays, {name: blob.to_numpy() for name, blob in found.get(group, {}).items()})

    # Among the ranks -------------------------------------------------------------------------------------
    def total(self, values: Sequence[float], name: str) -> list[float]:
        return sharing.total(self._world, values, name)

    def share(self, value: Any, root: int, name: str) -> Any:
        return sharing.share(self._world, value, root, name)

    def share_state(self, root: int) -> int:
        return sharing.share_state(self._world, self, root, self._tick)


def _overwrite(arrays: Arrays, values: Arrays) -> None:
    """Put ``values`` into those ``arrays`` that have their names; the arrays stay where they are."""
    for name, value in values.items():
        arrays[name][...] = value


def _check_fit(arrays: Arrays, blobs: Mapping[str, Blob], group: str) -> None:
    """Raise CheckpointDamaged unless names and shapes are the same."""
    missing, foreign = sorted(set(arrays) - set(blobs)), sorted(set(blobs) - set(arrays))
    if missing or foreign:
        raise CheckpointDamaged(
            f"the checkpoint does not fit this {group}: it lacks {missing[:3] or 'nothing'} and has "
            f"{foreign[:3] or 'nothing'} beside. Was task.args changed since? Start over with "
            "checkpoint.resume=never, or undo the change")
    for name, array in arrays.items():
        if blobs[name].shape != array.shape:
            raise CheckpointDamaged(f"the checkpoint's {name!r} has shape {blobs[name].shape}, the model's "
                                    f"{array.shape}. Was task.args changed since? Start over with "
                                    "checkpoint.resume=never")


def _sum(name: str, value: Any, count: int) -> float:
    """Over a batch: of one value per sample, or of a mean."""
    array = np.asarray(value, np.float64)
    if array.shape not in ((), (count,)):
        raise UserCodeError(f"the task gave {name!r} with shape {array.shape} for a batch of {count} samples; it must "
                            f"be one value per sample, shape ({count},), or a scalar mean")
    return float(array) * count if array.ndim == 0 else float(array.sum())
