"""One rank of network.py, in a network namespace: trains a workload and notes what crossed the cable meanwhile.

networked.py alone|horovod|ddp|hvtrain mlp --steps 18 --batch 8 [--codec fp16]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any, Callable

import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import models  # noqa: E402
from netns import crossed  # noqa: E402
from stopwatch import RESULT, Stopwatch  # noqa: E402


class Counted:
    """A barrier that reads the cable's counters: the stopwatch calls it as its clock starts and as it stops."""

    def __init__(self, rank: int, barrier: Callable[[], None]):
        self._rank, self._barrier = rank, barrier
        self._before: tuple[int, int] | None = None

    def __call__(self) -> None:
        self._barrier()
        now = crossed()
        if self._before is None:
            self._before = now
            return
        sent, received = (after - before for before, after in zip(self._before, now))
        line = json.dumps({"rank": self._rank, "event": "crossed", "sent": sent, "received": received}) + "\n"
        file = os.open(os.environ[RESULT], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(file, line.encode())
        os.close(file)


def alone(args: argparse.Namespace) -> None:
    """Computation: one process, no communication."""
    model, optimizer = build(args)
    train(args, model, optimizer, 0, 1, lambda: None)


def horovod(args: argparse.Namespace) -> None:
    """As peers/horovod_plain.py does it."""
    import horovod.torch as hvd

    hvd.init()
    model, optimizer = build(args)
    compression = {"none": hvd.Compression.none, "fp16": hvd.Compression.fp16}[args.codec]
    optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=model.named_parameters(), compression=compression)
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    train(args, model, optimizer, hvd.rank(), hvd.size(), hvd.barrier)
    hvd.shutdown()


def ddp(args: argparse.Namespace) -> None:
    """As peers/ddp.py does it, with one of PyTorch's communication hooks."""
    import torch.distributed as dist
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
    from torch.nn.parallel import DistributedDataParallel

    dist.init_process_group("gloo")
    model, optimizer = build(args)
    # PowerSGD's hook starts its second and third exchange, and waits for them, in gloo's own two threads: with more
    # than one bucket ranks wait for each other for ever, or mix exchanges up (torch 2.13)
    cap = {"bucket_cap_mb": 1 << 12} if args.codec == "powersgd" else {}
    replica = DistributedDataParallel(model, gradient_as_bucket_view=True, **cap)
    if args.codec == "powersgd":  # two steps without it are the fewest that it allows; all are before the clock starts
        state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=1, start_powerSGD_iter=2)
        replica.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    elif args.codec != "none":
        hook = {"fp16": default_hooks.fp16_compress_hook, "bf16": default_hooks.bf16_compress_hook}[args.codec]
        # by another name: DDP (torch 2.13) refuses the name bf16_compress_hook without NCCL, though gloo can do it
        replica.register_comm_hook(None, lambda state, bucket: hook(state, bucket))
    train(args, replica, optimizer, dist.get_rank(), dist.get_world_size(), dist.barrier)
    dist.destroy_process_group()


def build(args: argparse.Namespace) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = models.WORKLOADS[args.workload].model()
    return model, models.WORKLOADS[args.workload].optimizer(model.parameters(), args.fused)


def train(args: argparse.Namespace, model: torch.nn.Module, optimizer: torch.optim.Optimizer, rank: int, size: int,
          barrier: Callable[[], None]) -> None:
    watch = Stopwatch(rank, args.steps, Counted(rank, barrier))
    data = models.WORKLOADS[args.workload].data()
    for inputs, targets in models.batches(data, args.batch, rank, size, args.steps):
        optimizer.zero_grad()
        models.loss(model(inputs), targets).backward()
        optimizer.step()
        watch.step_done(model, optimizer)


def hvtrain(args: argparse.Namespace) -> None:
    """``Trainer(job, task).fit()``; alone where no other rank is told of in the environment."""
    import task
    from contestants import HERE

    from hvtrain import Callback, Trainer, config

    class Timing(Callback):
        def on_start(self, moment: Any) -> None:
            barrier = task._barrier if moment.size > 1 else lambda: None
            self._watch = Stopwatch(moment.rank, args.steps, Counted(moment.rank, barrier))

        def on_step_end(self, moment: Any) -> None:
            self._watch.step_done(moment.model, moment.optimizer)

    class Benchmark(task.Benchmark):
        def callbacks(self) -> list[Callback]:
            return [Timing()]

    load, size = models.WORKLOADS[args.workload], int(os.environ.get("HOROVOD_SIZE", 1))
    job = config.load(HERE / "job.yaml", [
        "run.dir=run", f"train.steps={args.steps}", f"data.global_batch={args.batch * size}",
        f"optim.name={load.optim}", f"comm.codec={args.codec}",
        *(f"optim.{key}={value}" for key, value in load.settings.items()), *args.set])
    Trainer(job, Benchmark(args.workload, args.steps)).fit()


KINDS = {"alone": alone, "horovod": horovod, "ddp": ddp, "hvtrain": hvtrain}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("workload", choices=models.WORKLOADS)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True, help="samples per rank")
    parser.add_argument("--codec", default="none")
    parser.add_argument("--fused", action="store_true", help="use PyTorch's fused optimizer; hvtrain does anyway")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of hvtrain's job")
    args = parser.parse_args()
    KINDS[args.kind](args)


if __name__ == "__main__":
    main()
