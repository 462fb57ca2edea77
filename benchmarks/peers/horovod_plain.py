"""A plain Horovod script, as its documentation shows it: horovodrun -np 2 python horovod_plain.py mnist"""

from __future__ import annotations

import argparse
import os
import sys

import horovod.torch as hvd
import torch

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

    hvd.init()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = workload.model()
    optimizer = workload.optimizer(model.parameters(), args.fused)
    optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=model.named_parameters())
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)

    watch = Stopwatch(hvd.rank(), args.steps, hvd.barrier)
    for inputs, targets in models.batches(workload.data(), args.batch, hvd.rank(), hvd.size(), args.steps):
        optimizer.zero_grad()
        models.loss(model(inputs), targets).backward()
        optimizer.step()
        watch.step_done(model, optimizer)
    hvd.shutdown()


if __name__ == "__main__":
    main()
