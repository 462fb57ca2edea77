"""Time of one all-reduce of a flat float32 buffer on gloo: hvtrain's codecs against Horovod and torch.distributed.

    python benchmarks/comm.py -v                             2 and 4 ranks, 0.1 to 100 MB, 5 repeats
    python benchmarks/comm.py --ranks 2 --sizes 10 --repeats 3 --json comm.json
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import contestants
import reductions
from contestants import HERE, Contestant, run

from hvtrain.control.warmstart import KEEP_MEMORY, SHARE_CORES

CONTESTANTS = (("hvtrain", "hvtrain", ()), ("hvtrain tcp", "hvtrain", ("comm.shared_memory=false",)),
               ("horovod", "horovod", ()), ("gloo", "gloo", ()))
"""Name, kind and settings. Ranks of one host share memory unless told otherwise; between hosts it is always TCP."""


@dataclass(frozen=True)
class Library(Contestant):
    """``kind`` is one of peers/collectives.py. One start measures all its ways of doing it, for all ``sizes`` (MB)."""

    sizes: tuple[float, ...] = ()
    volume: float = 0.0

    def command(self, workload: str, workers: int, steps: int, folder: Path) -> list[str]:
        arguments = [str(HERE / "peers" / "collectives.py"), self.kind, "--volume", str(self.volume),
                     "--sizes", *map(str, self.sizes), *(f"--set={each}" for each in self.overrides)]
        if self.kind == "gloo":
            return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers),
                    *arguments]
        command = [sys.executable, "-m", "horovod.runner.launch", "-np", str(workers), sys.executable, *arguments]
        if self.kind == "hvtrain":  # as the workers of `hvtrain run` have it
            command = ["env", *(f"{name}={value}" for name, value in {**KEEP_MEMORY, **SHARE_CORES}.items()), *command]
        return command


def main() -> int:
    args = _arguments()
    report: dict[str, Any] = {"machine": contestants.machine(), "repeats": args.repeats, "volume_mb": args.volume,
                              "results": []}
    here = report["machine"]
    print(f"{here['cpu']}, {here['cores']} cores, torch {here['torch']}, {here['date']}\n"
          f"1 thread per rank, {args.repeats} alternating repeats; a run's figure is the median of its operations\n")
    for ranks in args.ranks:
        try:
            found, loads = measure(ranks, args)
        except (contestants.ContestantFailed, ValueError) as error:
            print(f"{ranks} ranks: {error}", file=sys.stderr)
            return 1
        for mb, rows in found.items():
            print(reductions.table(mb, ranks, rows), flush=True)
            report["results"].append({"ranks": ranks, "mb": mb, "operations": reductions.operations(mb, args.volume),
                                      "load_before": loads, "contestants": rows})
        if args.json:  # after each, so that an interrupted measurement is not lost
            with open(args.json, "w", encoding="utf-8") as file:
                json.dump(report, file, indent=1)
    return 0


def measure(ranks: int, args: argparse.Namespace) -> tuple[dict[float, dict[str, Any]], list[float]]:
    """All libraries in turn, ``repeats`` times: results by MB and contestant, and the load before each run."""
    runs: dict[tuple[float, str], list[dict[str, Any]]] = {}
    loads = []
    for number in range(args.repeats):
        for name, kind, overrides in CONTESTANTS:
            library = Library(name, kind, overrides=overrides, sizes=tuple(args.sizes), volume=args.volume)
            result = run(library, "all-reduce", ranks, 0)
            loads.append(round(result.load, 2))
            found = reductions.summary(name, ranks, result.findings)
            for key, each in found.items():
                runs.setdefault(key, []).append(each)
            if args.verbose:
                times = "  ".join(f"{who.split()[-1]} {mb:g} MB {1e3 * each['seconds']:.2f}"
                                  for (mb, who), each in found.items())
                print(f"  {ranks} ranks {number + 1}/{args.repeats} {name:11} load {result.load:.1f}, ms: {times}",
                      file=sys.stderr, flush=True)
    return {mb: {who: reductions.collected(got) for (size, who), got in runs.items() if size == mb}
            for mb in args.sizes}, loads


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--sizes", type=float, nargs="+", default=[0.1, 1, 10, 100], metavar="MB")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--volume", type=float, default=200, metavar="MB",
                        help=f"MB that every contestant reduces of every size in a run, by {reductions.FEWEST} to "
                             f"{reductions.MOST} operations (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write everything that was measured")
    parser.add_argument("-v", "--verbose", action="store_true", help="show every run as it ends")
    args = parser.parse_args()
    if args.repeats < 1 or min(args.ranks) < 2 or min(args.sizes) <= 0:
        parser.error("--repeats must be at least 1, --ranks at least 2, --sizes more than 0")
    return args


if __name__ == "__main__":
    sys.exit(main())
