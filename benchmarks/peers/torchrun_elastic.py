"""A script that goes on from its last checkpoint when torchrun starts it again; it saves after every step.

TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun --standalone --nproc-per-node 4 --max-restarts 100 \\
    torchrun_elastic.py mnist --steps 1000 --batch 8 --checkpoint last.safetensors
"""

from __future__ import annotations

import argparse
import os
import sys
from datetime import timedelta
from itertools import islice
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import models  # noqa: E402
from steplog import StepLog  # noqa: E402

TIMEOUT = timedelta(seconds=30)
"""What a collective waits for a peer: as long as Horovod's does by default. PyTorch's own default is 30 minutes."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("workload", choices=models.WORKLOADS)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True, help="samples per worker")
    parser.add_argument("--checkpoint", type=Path, required=True, help="file to save to and to go on from")
    args = parser.parse_args()
    workload = models.WORKLOADS[args.workload]

    dist.init_process_group("gloo", timeout=TIMEOUT)
    rank, size = dist.get_rank(), dist.get_world_size()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = workload.model()
    optimizer = workload.optimizer(model.parameters(), fused=False)
    step = load(args.checkpoint, model, optimizer) if args.checkpoint.exists() else 0
    replica = DistributedDataParallel(model, gradient_as_bucket_view=True)
    log = StepLog.from_environment()

    for inputs, targets in islice(models.batches(workload.data(), args.batch, rank, size, args.steps), step, None):
        optimizer.zero_grad()
        models.loss(replica(inputs), targets).backward()
        optimizer.step()
        step += 1
        if rank == 0:
            save(args.checkpoint, model, optimizer, step)
        log.done(step, rank, size)
    dist.destroy_process_group()


def save(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Replace the checkpoint as a whole, so that dying in here leaves the former one."""
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optim/{index}/{name}": value for name, value in state.items() if value is not None}
    save_file(tensors, path.with_suffix(".new"), {"step": str(step)})
    os.replace(path.with_suffix(".new"), path)


def load(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Take over the checkpoint's state; returns its step."""
    weights, states = {}, {}
    with safe_open(path, "pt") as file:
        for key in file.keys():
            kind, _, name = key.partition("/")
            if kind == "model":
                weights[name] = file.get_tensor(key)
            else:
                index, _, name = name.partition("/")
                states.setdefault(int(index), {})[name] = file.get_tensor(key)
        step = int(file.metadata()["step"])
    model.load_state_dict(weights)
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
    return step


if __name__ == "__main__":
    main()
