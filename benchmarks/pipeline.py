"""Two stages against one, and against torch.distributed.pipelining: forward and backward of one model, 1 thread a stage.

    python benchmarks/pipeline.py                                    5 repeats in turns, 8 micro-batches
    python benchmarks/pipeline.py --width 512 --microbatches 16 -v --json pipeline.json

The model is a chain of linear layers with GELU, and a micro-batch has so many samples that matrix products take nearly all
of the time, not the memory that weights and gradients are read from: that is one, for all cores. A stage is a
thread in hvtrain, a process that talks over gloo in torch.distributed.pipelining. Nothing is reduced over replicas, no
optimizer runs. Nobody is faster than K * M / (M + K - 1) times one stage.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import contestants
from contestants import HERE
from peers import pipelining

FIELD = ("hvtrain, 1 stage", "hvtrain, 2 stages", "torch.distributed.pipelining", "torch, 1 thread", "torch, 2 threads")


def main() -> int:
    args = _arguments()
    if args.contestant:
        print(json.dumps(_measure(args)))
        return 0
    here = contestants.machine()
    print(f"{here['cpu']}, {here['cores']} cores, torch {here['torch']}, {here['date']}\n{args.layers} layers of width {args.width}, "
          f"{args.batch} samples in {args.microbatches} micro-batches, {args.steps} steps, {args.repeats} alternating repeats")
    seconds: dict[str, list[float]] = {name: [] for name in FIELD}
    for number in range(args.repeats):
        for name in FIELD:
            seconds[name].append(_run(name, args))
            if args.verbose:
                print(f"  {number} {name}: {1000 * seconds[name][-1]:.1f} ms", file=sys.stderr, flush=True)
    print(_table(seconds, args.microbatches))
    if args.json:
        Path(args.json).write_text(json.dumps({"machine": here, "arguments": vars(args), "seconds": seconds}, indent=1) + "\n")
    return 0


def _table(seconds: dict[str, list[float]], microbatches: int) -> str:
    one = seconds[FIELD[0]]
    lines = ["| | ms a step: median, min, max | 1 stage / it | run by run: median, min, max |", "|---|---|---|---|"]
    for name, each in seconds.items():
        ratios = [theirs / own for theirs, own in zip(one, each)]
        lines.append(f"| {name} | {1000 * statistics.median(each):.1f}, {1000 * min(each):.1f}, {1000 * max(each):.1f} "
                     f"| {statistics.median(one) / statistics.median(each):.2f}x "
                     f"| {statistics.median(ratios):.2f}x, {min(ratios):.2f}, {max(ratios):.2f} |")
    return "\n".join([*lines, f"bound for 2 stages and {microbatches} micro-batches: "
                              f"{2 * microbatches / (microbatches + 1):.2f}x"])


def _run(name: str, args: argparse.Namespace) -> float:
    """Seconds of a step, the median of a run of its own."""
    sizes = [f"--{key}={getattr(args, key)}" for key in pipelining.SIZES]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(
        filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))}
    if name == "torch.distributed.pipelining":
        with tempfile.NamedTemporaryFile("r", suffix=".json") as found:
            _call([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                   str(HERE / "peers" / "pipelining.py"), *sizes, "--out", found.name], environment)
            return statistics.median(json.load(found))
    return statistics.median(json.loads(_call([sys.executable, __file__, "--contestant", name, *sizes], environment)))


def _call(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\nfailed:\n{done.stderr[-3000:]}")
    return done.stdout


def _measure(args: argparse.Namespace) -> list[float]:
    """Seconds of each step of a contestant that is one process."""
    import torch

    model, inputs, targets = pipelining.problem(args)
    torch.set_num_threads(2 if args.contestant == "torch, 2 threads" else 1)
    if args.contestant.startswith("torch"):
        def step() -> None:
            for x, y in zip(inputs.chunk(args.microbatches), targets.chunk(args.microbatches)):
                pipelining.loss(model(x), y).backward()
    else:
        from hvtrain.hybrid.torch.chain import chain
        from hvtrain.hybrid.torch.parts import cut
        from hvtrain.hybrid.torch.pipeline import Microbatch, Pipeline

        stages = 2 if "2" in args.contestant else 1
        links = chain(model)
        split = [len(links.links) // stages] * stages
        pipeline = Pipeline(cut(links, split, ["cpu"] * stages))

        def cut_up() -> list[Microbatch]:
            return [Microbatch((x,), lambda outputs, y=y: pipelining.loss(outputs, y))
                    for x, y in zip(inputs.chunk(args.microbatches), targets.chunk(args.microbatches))]

        pipeline.learn(cut_up()[0])

        def step() -> None:
            pipeline.run(cut_up())
    return pipelining.timed(step, model, args.steps)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    pipelining.add_sizes(parser)
    parser.add_argument("--repeats", type=int, default=5, help="runs of each contestant, in turns (5)")
    parser.add_argument("--contestant", choices=FIELD, help=argparse.SUPPRESS)
    parser.add_argument("--json", metavar="FILE", help="write everything that was measured")
    parser.add_argument("-v", "--verbose", action="store_true", help="show every run as it ends")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
