"""Samples per second of hvtrain against plain Horovod and DistributedDataParallel, over gloo on this machine.

    python benchmarks/throughput.py                        all workloads, 5 repeats
    python benchmarks/throughput.py mlp --repeats 3 --json result.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from typing import Any

import contestants
from contestants import Contestant, Run, run
from models import WORKLOADS
from stopwatch import WARMUP

NAMES = ("mnist", "charlm", "mlp")


def main() -> int:
    args = _arguments()
    report: dict[str, Any] = {"machine": contestants.machine(), "workers": args.workers, "repeats": args.repeats,
                              "fused": args.fused, "workloads": {}}
    print(_title(report))
    for name in args.workloads or NAMES:
        try:
            report["workloads"][name] = measure(name, args)
        except contestants.ContestantFailed as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 1
        print(_table(name, report["workloads"][name]), flush=True)
        if args.json:  # after each, so that an interrupted measurement is not lost
            with open(args.json, "w", encoding="utf-8") as file:
                json.dump(report, file, indent=1)
    return 0


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Find Horovod's best cycle time, then run all contestants in turn, ``repeats`` times."""
    steps = args.steps or WORKLOADS[name].steps
    fused_hvtrain, fused_peers = args.fused in ("hvtrain", "all"), args.fused == "all"
    tuning: dict[str, list[float]] = {}
    for _ in range(args.tune_repeats):
        for cycle in args.cycle_times:
            tried = Contestant(f"horovod {cycle:g} ms", "horovod", fused_peers, cycle)
            rate = _rate(_run(tried, name, args, max(steps // 2, WARMUP + 5)), name, args)
            tuning.setdefault(f"{cycle:g}", []).append(rate)
    best = max(tuning, key=lambda cycle: statistics.median(tuning[cycle])) if tuning else None
    field = [Contestant("hvtrain", "hvtrain", fused_hvtrain, overrides=tuple(args.set)),
             Contestant("horovod", "horovod", fused_peers)]
    if best is not None:
        field.append(Contestant(f"horovod best cycle ({best} ms)", "horovod", fused_peers, float(best)))
    field.append(Contestant("ddp", "ddp", fused_peers))
    runs: dict[str, list[Run]] = {each.name: [] for each in field}
    for _ in range(args.repeats):
        for each in field:
            runs[each.name].append(_run(each, name, args, steps))
    rates = {who: [_rate(each, name, args) for each in got] for who, got in runs.items()}
    return {"batch_per_worker": WORKLOADS[name].batch, "steps": steps - WARMUP, "optimizer": WORKLOADS[name].optim,
            "parameters": runs["hvtrain"][0].steady["parameters"], "tuning": tuning,
            "contestants": {who: _summary(rates, who, got) for who, got in runs.items()}}


def _summary(rates: dict[str, list[float]], who: str, runs: list[Run]) -> dict[str, Any]:
    paired = [ours / theirs for ours, theirs in zip(rates["hvtrain"], rates[who])]
    return {"samples_per_s": contestants.spread(rates[who]), "rates": rates[who],
            "hvtrain_ratio": statistics.median(rates["hvtrain"]) / statistics.median(rates[who]),
            "hvtrain_ratio_paired": contestants.spread(paired),
            "median_step_ms": statistics.median(1000 * t for run in runs for t in run.steady["step_seconds"]),
            "cpu_step_ms": statistics.median(1000 * r.steady["cpu_seconds"] / r.steady["steps"] for r in runs),
            "fused": runs[0].steady["fused"], "threads": runs[0].steady["threads"],
            "load_before": [round(run.load, 2) for run in runs]}


def _run(contestant: Contestant, name: str, args: argparse.Namespace, steps: int) -> Run:
    result = run(contestant, name, args.workers, steps)
    if args.verbose:
        print(f"  {name:7} {contestant.name:28} {_rate(result, name, args):9.1f} samples/s   load before "
              f"{result.load:.1f}, whole run {result.wall:.0f} s", file=sys.stderr, flush=True)
    return result


def _rate(result: Run, name: str, args: argparse.Namespace) -> float:
    steady = result.steady
    return steady["steps"] * WORKLOADS[name].batch * args.workers / steady["seconds"]


def _title(report: dict[str, Any]) -> str:
    fused = {"hvtrain": "hvtrain: PyTorch's fused optimizer (its default); peers: PyTorch's default",
             "all": "PyTorch's fused optimizer for all", "none": "PyTorch's default (not fused) for all"}[report["fused"]]
    here = report["machine"]
    return (f"{here['cpu']}, {here['cores']} cores, torch {here['torch']}, {here['date']}\n"
            f"{report['workers']} workers, 1 thread each, {report['repeats']} alternating repeats\noptimizer: {fused}\n")


def _table(name: str, found: dict[str, Any]) -> str:
    lines = [f"{name}: {found['parameters'] / 1e6:.1f} M parameters, batch {found['batch_per_worker']} per worker, "
             f"{found['optimizer']}, {found['steps']} steps",
             f"{'':30}{'samples/s':>10}{'min':>9}{'max':>9}{'ms/step':>9}{'CPU ms':>9}   hvtrain is"]
    for who, each in found["contestants"].items():
        rate, paired = each["samples_per_s"], each["hvtrain_ratio_paired"]
        ratio = "" if who == "hvtrain" else (f"{each['hvtrain_ratio']:.2f}x   (run by run {paired['median']:.2f}x, "
                                             f"{paired['min']:.2f} to {paired['max']:.2f})")
        lines.append(f"{who + (' [fused]' if each['fused'] else ''):30}{rate['median']:10.1f}{rate['min']:9.1f}"
                     f"{rate['max']:9.1f}{each['median_step_ms']:9.1f}"
                     f"{each['cpu_step_ms']:9.1f}   {ratio}")
    if found["tuning"]:
        tried = ", ".join(f"{cycle} ms {statistics.median(rates):.0f}" for cycle, rates in found["tuning"].items())
        lines.append(f"Horovod's cycle times, samples/s: {tried}")
    return "\n".join(lines) + "\n"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=f"{', '.join(NAMES)}; all if left out")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, help=f"steps per run, the {WARMUP} for warm-up included; each workload's own")
    parser.add_argument("--cycle-times", type=float, nargs="*", default=[1, 2.5, 5, 10], metavar="MS",
                        help="values of HOROVOD_CYCLE_TIME to find the best of; none: only the default is run")
    parser.add_argument("--tune-repeats", type=int, default=2, help="runs per cycle time to find the best")
    parser.add_argument("--fused", choices=["hvtrain", "all", "none"], default="hvtrain",
                        help="who uses PyTorch's fused optimizer: hvtrain (everybody's defaults), all, or none")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of hvtrain's job")
    parser.add_argument("--json", metavar="FILE", help="write everything that was measured")
    parser.add_argument("-v", "--verbose", action="store_true", help="show every run as it ends")
    args = parser.parse_args()
    if unknown := set(args.workloads) - set(NAMES):
        parser.error(f"unknown workload {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    if args.repeats < 1 or args.tune_repeats < 1 or args.workers < 1:
        parser.error("--repeats, --tune-repeats and --workers must be at least 1")
    if args.steps is not None and args.steps <= WARMUP:
        parser.error(f"--steps must be more than the {WARMUP} steps of warm-up")
    return args


if __name__ == "__main__":
    sys.exit(main())
