"""What being elastic costs while nothing goes wrong: the time of a step with ``elastic.enabled`` true and false.

    python benchmarks/overhead.py                          mnist, 40 ms of each step asleep, 9 alternating repeats
    python benchmarks/overhead.py charlm --sleep 0         as it is: needs a machine that does nothing else

Elastic means: heartbeats with progress, the step watch, the host's snapshots in shared memory, the fault points.
The two run in turn, A B B A ...; the figure is the median over the pairs of the ratio of their mean step times (the
mean, because a snapshot comes once in many steps). Speeds of whole runs differ by 10 % and more on small virtual machines,
which hides 1 %; of a step that sleeps most of its time only the rest can vary so. What elasticity adds, it adds in
full, and the processor time beside it shows what a sleeping step might hide.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys

import contestants
from contestants import Contestant
from models import WORKLOADS

BATCH = {"mnist": 8}
"""Per worker, for about 10 ms of computation; the workload's own where none is given."""


def main() -> int:
    args = _arguments()
    batch = args.batch or BATCH.get(args.workload, WORKLOADS[args.workload].batch)
    common = (f"data.global_batch={batch * args.workers}", f"task.args.sleep={args.sleep}")
    field = [Contestant("elastic", "hvtrain", True, overrides=common),
             Contestant("off", "hvtrain", True, overrides=(*common, "elastic.enabled=false"))]
    steps: dict[str, list[float]] = {each.name: [] for each in field}
    cpu: dict[str, list[float]] = {each.name: [] for each in field}
    for number in range(args.repeats):
        for each in field if number % 2 == 0 else field[::-1]:
            run = contestants.run(each, args.workload, args.workers, args.steps)
            found = run.steady
            steps[each.name].append(found["seconds"] / found["steps"])
            cpu[each.name].append(found["cpu_seconds"] / found["steps"])
            print(f"{number + 1}/{args.repeats} {each.name:8} {steps[each.name][-1] * 1e3:7.2f} ms/step, "
                  f"{cpu[each.name][-1] * 1e3:6.2f} ms of processor time  load {run.load:.1f}", file=sys.stderr)
    ratios = sorted(on / off for on, off in zip(steps["elastic"], steps["off"]))
    report = {"machine": contestants.machine(), "workload": args.workload, "workers": args.workers, "batch": batch,
              "ms_per_step": {name: round(statistics.median(times) * 1e3, 3) for name, times in steps.items()},
              "cpu_ms_per_step": {name: round(statistics.median(times) * 1e3, 3) for name, times in cpu.items()},
              "ratio": round(statistics.median(ratios), 4), "ratios": [round(ratio, 4) for ratio in ratios]}
    print(f"{args.workload}, {args.workers} workers, {batch} samples each: {report['ms_per_step']['elastic']:.2f} ms a step "
          f"elastic, {report['ms_per_step']['off']:.2f} ms with it off; ratio {report['ratio']:.4f} "
          f"(pairs from {ratios[0]:.4f} to {ratios[-1]:.4f}); processor time "
          f"{report['cpu_ms_per_step']['elastic']:.2f} and {report['cpu_ms_per_step']['off']:.2f} ms")
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workload", nargs="?", default="mnist", choices=sorted(WORKLOADS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, help="samples per worker and step")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--sleep", type=float, default=0.04, help="seconds of each step asleep (%(default)s)")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
