"""Step time where the network is the limit: two ranks, each in its own network namespace, a cable of 1 Gbit/s between.

    sudo .venv/bin/python benchmarks/network.py -v                         all contestants, 5 repeats
    sudo .venv/bin/python benchmarks/network.py --contestants "hvtrain int8" ddp --rate 100mbit --json network.json
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
from typing import Any, Mapping

import torch

import contestants
import floors
import netns
import pairs
from models import WORKLOADS
from netns import Cable
from pairs import FIELD, Pair
from stopwatch import WARMUP

COUNTERPARTS = {"hvtrain none": "ddp", "hvtrain fp16": "ddp fp16", "hvtrain bf16": "ddp bf16",
                "hvtrain int8": "ddp powersgd"}
"""The contestant of DDP that does most nearly the same."""


def main() -> int:
    args = _arguments()
    if why := netns.obstacle():
        sys.exit(why)
    for number in (signal.SIGTERM, signal.SIGHUP):  # an exception, so that the namespaces are cleared away
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    report: dict[str, Any] = {"machine": contestants.machine(), "workload": args.workload, "batch_per_rank": args.batch,
                              "steps": args.steps - WARMUP, "repeats": args.repeats, "fused": args.fused,
                              "rate": args.rate}
    try:
        with Cable(args.rate, args.burst, args.latency) as cable:
            report["bandwidth"] = pairs.bandwidth(cable, args.transfer)
            print(_title(report), flush=True)
            report["contestants"] = measure(cable, report["bandwidth"]["one_way"], args)
    except (netns.NoCable, contestants.ContestantFailed) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(table(report["contestants"]))
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1)
    return 0


def measure(cable: Cable, bandwidth: float, args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """All contestants in turn, ``repeats`` times. Computation alone is always among them, for the floors."""
    field = [pair for pair in FIELD if pair.ranks == 1 or pair.name in args.contestants]
    arguments = [args.workload, "--steps", str(args.steps), "--batch", str(args.batch),
                 *(["--fused"] if args.fused else []), *(f"--set={each}" for each in args.set)]
    runs: dict[str, list[contestants.Run]] = {pair.name: [] for pair in field}
    for number in range(args.repeats):
        for pair in field:
            result = pairs.run(pair, cable, arguments)
            runs[pair.name].append(result)
            if args.verbose:
                print(f"  {number + 1}/{args.repeats} {pair.name:14} {1e3 * _step(result):9.1f} ms/step   load before "
                      f"{result.load:.1f}, whole run {result.wall:.0f} s", file=sys.stderr, flush=True)
    with torch.device("meta"):
        shapes = [parameter.shape for parameter in WORKLOADS[args.workload].model().parameters()]
    alone = {pair.name: statistics.median(map(_step, runs[pair.name])) for pair in field if pair.ranks == 1}
    found = {}
    for pair in field:
        sent = floors.one_way(floors.wire(pair.kind, pair.codec, shapes), pair.ranks)
        steps = args.steps - WARMUP
        crossed = [next(f for f in each.findings if f["event"] == "crossed" and f["rank"] == 0)
                   for each in runs[pair.name]]
        found[pair.name] = {
            "seconds": contestants.spread([_step(each) for each in runs[pair.name]]),
            "runs": [_step(each) for each in runs[pair.name]],
            "sent": statistics.median(each["sent"] / steps for each in crossed),
            "received": statistics.median(each["received"] / steps for each in crossed),
            "counted": sent, "floor": floors.floor(alone[pair.base], sent, bandwidth),
            "cpu_seconds": statistics.median(each.steady["cpu_seconds"] / steps for each in runs[pair.name]),
            "load_before": [round(each.load, 2) for each in runs[pair.name]]}
    return found


def _step(result: contestants.Run) -> float:
    return result.steady["seconds"] / result.steady["steps"]


def _title(report: dict[str, Any]) -> str:
    here, speed = report["machine"], report["bandwidth"]
    return (f"{here['cpu']}, {here['cores']} cores, torch {here['torch']}, {here['date']}\n"
            f"cable of {report['rate']}: plain TCP {speed['one_way'] / 1e6:.1f} MB/s one way, "
            f"{speed['both_ways'] / 1e6:.1f} each way when both are used\n"
            f"{report['workload']}, batch {report['batch_per_rank']} per rank, 2 ranks, 1 thread each, "
            f"{report['steps']} steps, {report['repeats']} alternating repeats"
            f"{', fused optimizer for all' if report['fused'] else ''}\n")


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Rows by contestant. MB are those of rank 0's end of the cable, per step; the last columns are ratios of times."""
    plain = found.get("hvtrain none")
    lines = [f"{'':16}{'ms/step':>9}{'min':>9}{'max':>9}{'CPU ms':>8}{'MB out':>9}{'MB in':>9}{'by count':>10}"
             f"{'floor ms':>10}{'x floor':>9}{'none / it':>11}{'ddp / it':>10}"]
    for name, each in found.items():
        step = each["seconds"]
        line = (f"{name:16}{1e3 * step['median']:9.1f}{1e3 * step['min']:9.1f}{1e3 * step['max']:9.1f}"
                f"{1e3 * each['cpu_seconds']:8.0f}{each['sent'] / 1e6:9.2f}{each['received'] / 1e6:9.2f}"
                f"{each['counted'] / 1e6:10.2f}{1e3 * each['floor']:10.1f}{step['median'] / each['floor']:9.2f}")
        other = found.get(COUNTERPARTS.get(name, ""))
        if plain and each["counted"]:
            line += f"{plain['seconds']['median'] / step['median']:10.2f}x"
        if other:
            line += f"{other['seconds']['median'] / step['median']:{9 if plain else 20}.2f}x"
        if each["sent"] < 0.9 * each["counted"]:
            line += "   BYTES MISSING: they went another way"
        lines.append(line)
    return "\n".join(lines) + "\n"


def _arguments() -> argparse.Namespace:
    names = [pair.name for pair in FIELD if pair.ranks > 1]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contestants", nargs="+", choices=names, default=names, metavar="NAME",
                        help=f"{', '.join(names)}; all if left out. Computation alone is always measured")
    parser.add_argument("--workload", choices=sorted(WORKLOADS), default="mlp")
    parser.add_argument("--batch", type=int, default=8, help="samples per rank (%(default)s)")
    parser.add_argument("--steps", type=int, default=18, help=f"per run, {WARMUP} for warm-up included (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rate", default="1gbit", help="of the cable, each way (%(default)s)")
    parser.add_argument("--burst", default="256kb", help="what may go at once at any speed (%(default)s)")
    parser.add_argument("--latency", default="50ms", help="how long a packet may queue (%(default)s)")
    parser.add_argument("--transfer", type=float, default=500, metavar="MB",
                        help="sent to measure the bandwidth (%(default)s)")
    parser.add_argument("--fused", action="store_true", help="PyTorch's fused optimizer for the peers, too")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of hvtrain's job")
    parser.add_argument("--json", metavar="FILE", help="write everything that was measured")
    parser.add_argument("-v", "--verbose", action="store_true", help="show every run as it ends")
    args = parser.parse_args()
    if args.repeats < 1 or args.steps <= WARMUP:
        parser.error(f"--repeats must be at least 1, --steps more than the {WARMUP} of warm-up")
    return args


if __name__ == "__main__":
    sys.exit(main())
