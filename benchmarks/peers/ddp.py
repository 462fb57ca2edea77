"""A plain script with DistributedDataParallel over gloo: torchrun --nproc-per-node 2 ddp.py mnist"""

from __future__ import annotations

import argparse
import os
import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import models  # noqa: E402
from stopwatch import Stopwatch  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("workload", choices=models.WORKLOADS)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True, help="samples per worker")
    parser.add_argument("--fused", action="store_true", help="use PyTorch's fused optimizer")
    args = parser.parse_args()
    workload = models.WORKLOADS[args.workload]

    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = DistributedDataParallel(workload.model(), gradient_as_bucket_view=True)
    optimizer = workload.optimizer(model.parameters(), args.fused)

    watch = Stopwatch(dist.get_rank(), args.steps, dist.barrier)
    for inputs, targets in models.batches(workload.data(), args.batch, dist.get_rank(), dist.get_world_size(), args.steps):
        optimizer.zero_grad()
        models.loss(model(inputs), targets).backward()
        optimizer.step()
        watch.step_done(model, optimizer)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
