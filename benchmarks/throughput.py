"""Samples per second of hvtrain against plain Horovod and DistributedDataParallel, over gloo on this machine.

    python benchmarks/throughput.py                        all workloads, 5 repeats
    python benchmarks/throughput.py --framework keras      in Keras, against Horovod's operations in a hand-written step
    python benchmarks/throughput.py mlp --repeats 3 --json result.json
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
from typing import Any

import contestants
from contestants import WORKLOADS, Contestant, Run, run
from stopwatch import WARMUP

NAMES = {"torch": ("mnist", "charlm", "mlp"), "keras": ("mnist", "mlp")}


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that contestants are ended on the way out
    args = _arguments()
    report: dict[str, Any] = {"machine": contestants.machine(), "workers": args.workers, "repeats": args.repeats,
                              "framework": args.framework, "fused": args.fused, "workloads": {}}
    print(_title(report))
    for name in args.workloads or NAMES[args.framework]:
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
    load = WORKLOADS[args.framework][name]
    steps = args.steps or load.steps
    fused_hvtrain, fused_peers = args.fused in ("hvtrain", "all"), args.fused == "all"
    tuning: dict[str, list[float]] = {}
    for _ in range(args.tune_repeats):
        for cycle in args.cycle_times:
            tried = Contestant(f"horovod {cycle:g} ms", "horovod", fused_peers, cycle, framework=args.framework)
            rate = _rate(_run(tried, name, args, max(steps // 2, WARMUP + 5)), load.batch)
            tuning.setdefault(f"{cycle:g}", []).append(rate)
    best = max(tuning, key=lambda cycle: statistics.median(tuning[cycle])) if tuning else None
    field = [Contestant("hvtrain", "hvtrain", fused_hvtrain, overrides=tuple(args.set), framework=args.framework),
             Contestant("horovod", "horovod", fused_peers, framework=args.framework)]
    if best is not None:
        field.append(Contestant(f"horovod best cycle ({best} ms)", "horovod", fused_peers, float(best),
                                framework=args.framework))
    field += [Contestant("ddp", "ddp", fused_peers)] if args.framework == "torch" else [
        Contestant("horovod, each gradient by itself", "horovod", framework="keras", reduce="each"),
        Contestant("one process alone", "alone", framework="keras", reduce="none")]
    runs: dict[str, list[Run]] = {each.name: [] for each in field}
    for _ in range(args.repeats):
        for each in field:
            runs[each.name].append(_run(each, name, args, steps))
    rates = {who: [_rate(each, load.batch) for each in got] for who, got in runs.items()}
    return {"batch_per_worker": load.batch, "steps": steps - WARMUP, "optimizer": load.optim,
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
    result = run(contestant, name, 1 if contestant.kind == "alone" else args.workers, steps)
    if args.verbose:
        batch = WORKLOADS[args.framework][name].batch
        print(f"  {name:7} {contestant.name:32} {_rate(result, batch):9.1f} samples/s   load before "
              f"{result.load:.1f}, whole run {result.wall:.0f} s", file=sys.stderr, flush=True)
    return result


def _rate(result: Run, batch: int) -> float:
    steady = result.steady
    return steady["steps"] * batch * result.ranks / steady["seconds"]


def _title(report: dict[str, Any]) -> str:
    fused = {"hvtrain": "hvtrain: PyTorch's fused optimizer (its default); peers: PyTorch's default",
             "all": "PyTorch's fused optimizer for all", "none": "PyTorch's default (not fused) for all"}[report["fused"]]
    here = report["machine"]
    optimizer = "the same of Keras for all" if report["framework"] == "keras" else fused
    return (f"{here['cpu']}, {here['cores']} cores, {contestants.versions(here, report['framework'])}, {here['date']}\n"
            f"{report['workers']} workers, 1 thread each, {report['repeats']} alternating repeats\noptimizer: {optimizer}\n")


def _table(name: str, found: dict[str, Any]) -> str:
    lines = [f"{name}: {found['parameters'] / 1e6:.1f} M parameters, batch {found['batch_per_worker']} per worker, "
             f"{found['optimizer']}, {found['steps']} steps",
             f"{'':33}{'samples/s':>10}{'min':>9}{'max':>9}{'ms/step':>9}{'CPU ms':>9}   hvtrain is"]
    for who, each in found["contestants"].items():
        rate, paired = each["samples_per_s"], each["hvtrain_ratio_paired"]
        ratio = "" if who == "hvtrain" else (f"{each['hvtrain_ratio']:.2f}x   (run by run {paired['median']:.2f}x, "
                                             f"{paired['min']:.2f} to {paired['max']:.2f})")
        lines.append(f"{who + (' [fused]' if each['fused'] else ''):33}{rate['median']:10.1f}{rate['min']:9.1f}"
                     f"{rate['max']:9.1f}{each['median_step_ms']:9.1f}"
                     f"{each['cpu_step_ms']:9.1f}   {ratio}")
    if found["tuning"]:
        tried = ", ".join(f"{cycle} ms {statistics.median(rates):.0f}" for cycle, rates in found["tuning"].items())
        lines.append(f"Horovod's cycle times, samples/s: {tried}")
    return "\n".join(lines) + "\n"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=f"{', '.join(NAMES['torch'])} (charlm not in Keras); all if left out")
    parser.add_argument("--framework", choices=NAMES, default="torch")
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
    names = NAMES[args.framework]
    if unknown := set(args.workloads) - set(names):
        parser.error(f"unknown workload {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    if args.framework == "keras" and args.fused != "hvtrain":
        parser.error("--fused is about PyTorch's optimizers")
    if args.repeats < 1 or args.tune_repeats < 1 or args.workers < 1:
        parser.error("--repeats, --tune-repeats and --workers must be at least 1")
    if args.steps is not None and args.steps <= WARMUP:
        parser.error(f"--steps must be more than the {WARMUP} steps of warm-up")
    return args


if __name__ == "__main__":
    sys.exit(main())
