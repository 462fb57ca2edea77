"""The PyTorch adapter: one training step as a transaction over flat gradient buckets."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Callable, Iterable, Iterator, Mapping, Sequence

import torch

from hvtrain import probe
from hvtrain.adapters import sharing
from hvtrain.adapters.base import Reduced
from hvtrain.adapters.torch import batches as batching
from hvtrain.adapters.torch import codecs, optimizers, state
from hvtrain.adapters.torch.averages import Averages
from hvtrain.adapters.torch.gradients import FlatGradients
from hvtrain.adapters.torch.passes import Passes, WholeModel
from hvtrain.adapters.torch.precision import Precision
from hvtrain.adapters.torch.statistics import Statistics
from hvtrain.checkpoint.blob import Blob
from hvtrain.config import Job
from hvtrain.engine import horovod_torch
from hvtrain.engine.world import SoloWorld, World
from hvtrain.errors import Diverged, RoundBroken, UserCodeError
from hvtrain.task import Task

MEGABYTE = 1 << 20


class TorchAdapter:
    """Fulfils :class:`hvtrain.adapters.base.Adapter`.

    Args:
        job: the resolved job.
        task: the user's task.
        threads: CPU threads this process computes with.
        local_rank: which of the host's devices to use, where there are several.
        tick: called whenever a micro-batch is done.
    """

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer

    def __init__(self, job: Job, task: Task, *, threads: int, local_rank: int = 0,
                 tick: Callable[[], None] = lambda: None):
        self._job, self._task, self._world, self._tick = job, task, SoloWorld(), tick
        self._local_rank = local_rank
        stages = job.hybrid.stages if job.hybrid is not None else 1
        torch.set_num_threads(max(1, threads // stages) if isinstance(stages, int) else threads)  # those of each stage
        cuda = torch.cuda.is_available()
        self.device = torch.device("cuda", local_rank % torch.cuda.device_count()) if cuda else torch.device("cpu")

    def build(self) -> None:
        torch.manual_seed(self._job.run.seed)
        model = self._task.model()
        if not isinstance(model, torch.nn.Module):
            raise UserCodeError(f"Task.model gave a {type(model).__name__}; it must give a torch.nn.Module")
        optim = self._job.optim
        optimizers.freeze(model, optim.groups)
        self._passes = self._make_passes(model)
        self.model, self.device = model, self._passes.device
        self.optimizer = optimizers.build(self._task, self.model, optim)
        self._base_rates = optimizers.base_rates(self.optimizer)
        self._initial = [dict(group) for group in self.optimizer.param_groups]
        self._trainable = [p for p in self.model.parameters() if p.requires_grad]
        # The nearest to "within the optimizer's step" that PyTorch offers: after it has begun, before it returns.
        self.optimizer.register_step_post_hook(lambda *_: probe.reached("optimizer"))
        self._statistics = Statistics(self.model, self._task.averaged_buffers)
        comm = self._job.comm
        named = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        self._codec = codecs.choose(comm.codec, named)
        self._precision = Precision(self._job.train.precision, self.device, self._job.train.loss_scale)
        self._passes.use(self._precision, self._statistics)
        self._overflow = False
        self._gradients = FlatGradients(self._trainable, self._statistics,
                                        bucket_bytes=int(comm.bucket_mb * MEGABYTE),
                                        first_bytes=int(comm.first_bucket_mb * MEGABYTE), codec=self._codec,
                                        zeros=horovod_torch.zeros if comm.shared_memory else torch.zeros,
                                        stages=self._passes.stages)
        decay = self._job.train.ema
        self._averages = Averages(self.model, decay) if decay is not None else None
        self._passes.train(True)

    def _make_passes(self, model: torch.nn.Module) -> Passes:
        if self._job.hybrid is None:
            return WholeModel(model.to(self.device), self._task, self.device, self._tick)
        from hvtrain.adapters.torch.staged import StagedModel

        return StagedModel(model, self._task, self._job.hybrid, self._local_rank, self._tick)

    def warm_up(self, example: Callable[[], tuple[Any, int]]) -> None:
        self._passes.learn(example)

    def join(self, world: World) -> None:
        self._world = world
        self._gradients.use(world)

    def seed(self, step: int) -> None:
        # One 64-bit word from (seed, step, rank); the generator itself spreads it over its state.
        common = self._job.run.seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9
        mixed = common + self._world.rank * 0x94D049BB133111EB
        self._world.noise(common)
        self._passes.seed(mixed & (2**63 - 1))

    def gradients(self, batches: Sequence[Any], counts: Sequence[int], total: int,
                  flags: Sequence[float]) -> Reduced:
        self._gradients.begin()
        self._statistics.keep()
        try:
            loss_sum = self._passes.run(batches, counts, total / self._precision.factor, self._gradients.last)
            summed, flags_sum, waited, hidden = self._gradients.finish(loss_sum, flags, sum(counts) / total)
        except RoundBroken:
            self._statistics.put_back()
            raise
        self._statistics.check_others()
        scale = self._precision.scale
        self._overflow = scale is not None and scale.overflown(summed, self._gradients.finite)
        return Reduced(summed / total, flags_sum, waited, hidden, self._overflow)

    def apply(self, step: int, factor: float) -> Mapping[str, float]:
        values = {"lr": optimizers.set_rates(self.optimizer, self._base_rates, factor)}
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
            norm = self._gradients.norm() * undo
            if not torch.isfinite(norm):  # the same on all ranks: the gradients have been reduced
                raise Diverged(f"the gradient of step {step + 1} is not finite. Nothing of it was applied. Lower "
                               "optim.lr or look at the data of that step")
            self._gradients.scale((limit / (norm + 1e-6)).clamp(max=1.0) * undo)
            values["grad_norm"] = norm.item()
        elif undo != 1.0:
            self._gradients.scale(torch.tensor(undo))
        self.optimizer.step()
        self._codec.commit()
        if scale is not None:
            scale.good()
        self._gradients.adopt_statistics()
        self._passes.sync()
        if self._averages is not None:
            self._averages.update(step)
        return values

    @torch.no_grad()
    def evaluate(self, batches: Iterable[tuple[Any, int]], ema: bool) -> Mapping[str, float]:
        sums: dict[str, float] = {}
        samples = 0
        self._passes.train(False)
        try:
            with self._weights(ema):
                for batch, count in batches:
                    with self._precision.context():
                        outputs, batch = self._passes.infer(batch)
                        losses = batching.losses(self._task, outputs, batch, count)
                        losses = losses if losses.dim() else losses.double() / count  # one for all: the mean again
                        values = {"loss": losses, **self._task.metrics(outputs, batch)}
                    for name, value in values.items():
                        sums[name] = sums.get(name, 0.0) + batching.total(name, value, count)
                    samples += count
        finally:
            self._passes.train(True)
        return sharing.means(self._world, sums, samples)

    @contextmanager
    def _weights(self, ema: bool) -> Iterator[None]:
        """Within this context the model has its weights, or with ``ema`` their averages."""
        if not ema or self._averages is None:
            yield
            return
        try:
            with self._averages.in_place():
                self._passes.sync()
                yield
        finally:
            self._passes.sync()

    @torch.no_grad()
    def finite(self) -> bool:
        # A sum is finite only if its terms are, short of an overflow that no sane weight comes near.
        return all(bool(torch.isfinite(p.sum(dtype=torch.float64 if p.dtype == torch.float64 else torch.float32)))
                   for p in self._trainable if p.is_floating_point())

    def parameter_count(self) -> int:
        return sum(p.numel() for p in self._trainable)

    def export(self, copy: bool = True) -> dict[str, dict[str, Blob]]:
        optimizer, _ = state.export_optimizer(self.model, self.optimizer, copy)
        groups = {"model": state.export_module(self.model, copy), "optimizer": optimizer}
        if self._averages is not None:
            groups["ema"] = {name: state.to_blob(t, copy) for name, t in self._averages.tensors.items()}
        remembered = self._codec.export()
        return {**groups, "codec": remembered} if remembered else groups

    def scalars(self) -> dict[str, Any]:
        _, values = state.export_optimizer(self.model, self.optimizer)
        scalars = {"optimizer": values, "groups": optimizers.changed_settings(self.optimizer, self._initial)}
        scale = self._precision.scale
        return scalars if scale is None else {**scalars, "loss_scale": scale.export()}

    def restore(self, groups: Mapping[str, Mapping[str, Blob]], scalars: Mapping[str, Any]) -> None:
        state.restore_module(self.model, groups["model"])
        state.restore_optimizer(self.model, self.optimizer, groups.get("optimizer", {}), scalars["optimizer"])
        optimizers.take_settings(self.optimizer, scalars["groups"])
        if self._averages is not None:
            # A run that switches the average on later starts it from the weights.
            source = groups.get("ema") or {n: state.to_blob(p) for n, p in self.model.named_parameters()}
            state.restore_tensors(self._averages.tensors, source, "average")
        self._codec.restore(groups.get("codec", {}))
        if self._precision.scale is not None and "loss_scale" in scalars:
            self._precision.scale.restore(scalars["loss_scale"])
        self._statistics.refresh()
        self._passes.sync()

    def total(self, values: Sequence[float], name: str) -> list[float]:
        return sharing.total(self._world, values, name)

    def share(self, value: Any, root: int, name: str) -> Any:
        return sharing.share(self._world, value, root, name)

    def share_state(self, root: int) -> int:
        return sharing.share_state(self._world, self, root, self._tick)
