"""Seconds from the command to the first completed optimizer step on every rank: hvtrain, horovodrun, torchrun.

    python benchmarks/startup.py --workers 4 --repeats 5 --json startup.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from typing import Any

import contestants
from contestants import Contestant, run
from models import WORKLOADS

FIELD = (Contestant("hvtrain run", "hvtrain", fused=True), Contestant("horovodrun, plain script", "horovod"),
         Contestant("torchrun, plain DDP script", "ddp"))


def main() -> int:
    args = _arguments()
    times: dict[str, list[float]] = {each.name: [] for each in FIELD}
    walls: dict[str, list[float]] = {each.name: [] for each in FIELD}
    try:
        for number in range(args.repeats + 1):
            for each in FIELD:
                found = run(each, "digits", args.workers, WORKLOADS["digits"].steps)
                if args.verbose:
                    print(f"  {each.name:28}{found.first_step:7.2f} s   load before {found.load:.1f}"
                          f"{'   (not counted)' if number == 0 else ''}", file=sys.stderr, flush=True)
                if number:  # the first round only fills the page cache
                    times[each.name].append(found.first_step)
                    walls[each.name].append(found.wall)
    except contestants.ContestantFailed as error:
        print(error, file=sys.stderr)
        return 1
    ours = FIELD[0].name
    report: dict[str, Any] = {"machine": contestants.machine(), "workers": args.workers, "repeats": args.repeats,
                              "contestants": {}}
    for name, each in times.items():
        report["contestants"][name] = {
            "first_step_s": contestants.spread(each), "runs": each, "whole_run_s": contestants.spread(walls[name]),
            "hvtrain_faster": statistics.median(each) / statistics.median(times[ours]),
            "hvtrain_faster_paired": contestants.spread([b / a for a, b in zip(times[ours], each)])}
    print(_table(report))
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1)
    return 0


def _table(report: dict[str, Any]) -> str:
    here = report["machine"]
    lines = [f"{here['cpu']}, {here['cores']} cores, torch {here['torch']}, {here['date']}",
             f"{report['workers']} workers, {report['repeats']} alternating repeats; seconds from the command to the "
             "first step on all ranks",
             f"{'':28}{'median':>8}{'min':>8}{'max':>8}{'to end':>8}   hvtrain is"]
    for name, each in report["contestants"].items():
        first, paired = each["first_step_s"], each["hvtrain_faster_paired"]
        ratio = "" if name == FIELD[0].name else (f"{each['hvtrain_faster']:.2f}x faster   (run by run "
                                                  f"{paired['median']:.2f}x, {paired['min']:.2f} to {paired['max']:.2f})")
        lines.append(f"{name:28}{first['median']:8.2f}{first['min']:8.2f}{first['max']:8.2f}"
                     f"{each['whole_run_s']['median']:8.2f}   {ratio}")
    return "\n".join(lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", metavar="FILE", help="write everything that was measured")
    parser.add_argument("-v", "--verbose", action="store_true", help="show every run as it ends")
    args = parser.parse_args()
    if args.repeats < 1 or args.workers < 1:
        parser.error("--repeats and --workers must be at least 1")
    return args


if __name__ == "__main__":
    sys.exit(main())
