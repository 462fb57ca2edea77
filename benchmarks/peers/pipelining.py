"""Two stages with torch.distributed.pipelining over gloo, and the problem that all contestants of ../pipeline.py solve.

    torchrun --nproc-per-node 2 pipelining.py --out seconds.json
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Callable

import torch
from torch import nn

SIZES = {"width": 1024, "layers": 16, "batch": 1024, "microbatches": 8, "steps": 4}
WARMUP = 3


def add_sizes(parser: argparse.ArgumentParser) -> None:
    for key, value in SIZES.items():
        parser.add_argument(f"--{key}", type=int, default=value, help=f"({value})")


def problem(args: argparse.Namespace) -> tuple[nn.Sequential, torch.Tensor, torch.Tensor]:
    """The model, inputs and targets, both (batch, width)."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(args.width, args.width), nn.GELU()) for _ in range(args.layers)))
    return model, torch.randn(args.batch, args.width), torch.randn(args.batch, args.width)


def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (outputs - targets).square().mean()


def timed(step: Callable[[], object], model: nn.Module, steps: int,
          barrier: Callable[[], object] = lambda: None) -> list[float]:
    """Seconds of each step after the first few. Gradients are kept where they are, as when they lie in buckets."""
    seconds = []
    for number in range(WARMUP + steps):
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.zero_()
        barrier()
        started = time.perf_counter()
        step()
        barrier()
        if number >= WARMUP:
            seconds.append(time.perf_counter() - started)
    return seconds


def main() -> None:
    import torch.distributed as dist
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B

    parser = argparse.ArgumentParser()
    add_sizes(parser)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    model, inputs, targets = problem(args)
    half = args.layers // 2
    part = model[:half] if dist.get_rank() == 0 else model[half:]
    stage = PipelineStage(part, dist.get_rank(), 2, torch.device("cpu"))
    schedule = Schedule1F1B(stage, args.microbatches, loss_fn=loss)

    def step() -> None:
        if dist.get_rank() == 0:
            schedule.step(inputs)
        else:
            schedule.step(target=targets)

    seconds = timed(step, part, args.steps, dist.barrier)
    if dist.get_rank() == 0:
        Path(args.out).write_text(json.dumps(seconds))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
