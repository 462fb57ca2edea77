"""What a lost worker costs: hvtrain, Horovod elastic and torchrun side by side, on this machine.

    python benchmarks/recovery.py -v --json recovery.json             30 kills each, of one random worker of 4
    python benchmarks/recovery.py --stock-horovod .stock/bin/python   also Horovod as released (see stock_horovod.py)
    python benchmarks/recovery.py --fault stop --kills 5              workers are stopped (SIGSTOP) instead
    python benchmarks/recovery.py --only hvtrain --at-once 3          three at once
    python benchmarks/recovery.py --only hvtrain --phase optimizer    within the optimizer step
    python benchmarks/recovery.py --framework keras                   hvtrain's Keras jobs, which have no peer
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
from pathlib import Path
from typing import Any

import contestants
from contestants import WORKLOADS
from disturbance import SIGNALS, Plan
from elastic_jobs import KINDS, Setup, has_engine
from findings import Findings, seconds

FIGURES = ("median", "p95", "min", "max")
PHASES = ("forward", "backward", "bucket", "reduced", "optimizer", "committed")


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that jobs are ended on the way out
    args = _arguments()
    setup = Setup(args.workload, args.batch, args.workers, args.period_ms / 1000, tuple(args.set), args.phase,
                  args.stock_horovod, args.framework)
    plan = Plan(args.fault, args.at_once, args.rank, args.settle, args.spread, args.patience, args.full_patience)
    report: dict[str, Any] = {"machine": contestants.machine(), "arguments": vars(args), "contestants": {}}
    wanted = {kind: args.kills if kind == "hvtrain" else args.peer_kills for kind in args.only}
    found = {kind: Findings(kind, args) for kind in wanted}
    while turn := [kind for kind in wanted if not found[kind].failure and len(found[kind].outages) < wanted[kind]]:
        for kind in turn:  # some faults each in turn: a slow drift of the machine touches all alike
            found[kind].turn(setup, plan, min(args.kills_per_turn, wanted[kind] - len(found[kind].outages)))
            report["contestants"] = {each: found[each].report() for each in found}
            if args.json:  # after each, so that an interrupted measurement is not lost
                Path(args.json).write_text(json.dumps(report, indent=1))
    print(_table(report))
    return 1 if any(each.failure for each in found.values()) else 0


def _table(report: dict[str, Any]) -> str:
    here, args = report["machine"], report["arguments"]
    what = {"kill": "SIGKILL", "stop": "SIGSTOP"}[args["fault"]] + (f" in {args['phase']}" if args["phase"] else "")
    who = {"any": f"{args['at_once']} at random", "0": f"{args['at_once']}, rank 0 among them",
           "other": f"{args['at_once']} at random, never rank 0"}[args["rank"]]
    figures = "".join(f"{name:>8}" for name in FIGURES)
    lines = [f"{here['cpu']}, {here['cores']} cores, {contestants.versions(here, args['framework'])}, {here['date']}",
             f"{args['workload']}, {args['workers']} workers, steps of {args['period_ms']:g} ms or more; "
             f"{what} to {who}",
             f"{'':37}{'fault to next step, s':^32}    {'fault to full strength, s':^32}{'steps lost':>14}",
             f"{'':26}{'faults':>7}    {figures}    {figures}{'median, max':>14}{'ms/step':>9}"]
    for kind, each in report["contestants"].items():
        if not each["outages"]:
            lines.append(f"{KINDS[kind]:26}  no figures: {(each['failure'].splitlines() or ['not run'])[0]}")
            continue
        cells = ["".join(f"{seconds(each[column][name]):>8}" for name in FIGURES)
                 for column in ("next_step_s", "full_strength_s")]
        known = [outage["lost"] for outage in each["outages"] if outage["lost"] is not None]
        lost = f"{statistics.median(known):g}, {max(known)}" if known else "-"
        lines.append(f"{KINDS[kind]:26}{len(each['outages']):7}    {cells[0]}    {cells[1]}{lost:>14}"
                     f"{each['step_ms'] or 0:9.1f}")
        if each["jobs"] and "identical" in each["jobs"][0]:
            same = sum(job["identical"] for job in each["jobs"])
            left = sum(job["left_behind"] or 0 for job in each["jobs"])
            lines.append(f"{'':28}final weights identical to those of the undisturbed run: {same} of "
                         f"{len(each['jobs'])} jobs; processes left behind: {left}")
    if "horovod" in report["contestants"] and not args["stock_horovod"]:
        lines.append("Our engine's edits shorten Horovod's own recovery; --stock-horovod also runs what was released.")
    return "\n".join(lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=None, help="contestants; all if left out")
    parser.add_argument("--kills", type=int, default=30, help="faults per contestant, over as many jobs as it takes")
    parser.add_argument("--peer-kills", type=int, help="faults per peer; as many as hvtrain's if left out")
    parser.add_argument("--kills-per-turn", type=int, default=5,
                        help="faults before the next contestant has its turn; with hvtrain, at most so many in a job")
    parser.add_argument("--fault", choices=SIGNALS, default="kill")
    parser.add_argument("--at-once", type=int, default=1, help="workers that one fault hits")
    parser.add_argument("--rank", choices=["any", "0", "other"], default="any",
                        help="who is hit: anyone, rank 0 (and others, with --at-once), never rank 0")
    parser.add_argument("--stock-horovod", metavar="PYTHON", default="",
                        help="a Python that has Horovod as it was released; see stock_horovod.py")
    parser.add_argument("--phase", choices=PHASES, default="", help="hvtrain only: where in the step the victim dies")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--framework", choices=WORKLOADS, default="torch", help="keras: hvtrain alone")
    parser.add_argument("--workload", default="mnist", help="one of models.py or keras_models.py")
    parser.add_argument("--batch", type=int, default=8, help="samples per worker; few, so that the period is met")
    parser.add_argument("--period-ms", type=float, default=50, help="what a step is stretched to")
    parser.add_argument("--settle", type=int, default=20, help="undisturbed steps before each fault")
    parser.add_argument("--spread", type=float, default=1.0,
                        help="seconds; a random share of them is waited after that")
    parser.add_argument("--patience", type=float, default=120, help="seconds until the next step counts as never")
    parser.add_argument("--full-patience", type=float, default=30,
                        help="seconds from the next step until full strength counts as never")
    parser.add_argument("--seed", type=int, default=0, help="of the victims and moments")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of hvtrain's job")
    parser.add_argument("--json", metavar="FILE", help="write everything that was measured")
    parser.add_argument("--logs", metavar="DIR", help="keep every job's output and step files there")
    parser.add_argument("-v", "--verbose", action="store_true", help="show every job as it ends")
    args = parser.parse_args()
    if args.phase and (set(args.only or ["hvtrain"]) != {"hvtrain"} or args.fault != "kill"):
        parser.error("--phase is for hvtrain alone, and for --fault kill: give --only hvtrain or leave --only out")
    if args.workload not in WORKLOADS[args.framework]:
        parser.error(f"--workload {args.workload}: there are {', '.join(WORKLOADS[args.framework])}")
    if args.framework == "keras" and set(args.only or ["hvtrain"]) != {"hvtrain"}:
        parser.error("--framework keras is for hvtrain alone: give --only hvtrain or leave --only out")
    args.only = args.only or (["hvtrain"] if args.phase or args.framework == "keras" else
                              [kind for kind in KINDS if kind != "stock" or args.stock_horovod])
    if "stock" in args.only and (not args.stock_horovod or has_engine(args.stock_horovod)):
        parser.error("--stock-horovod must name a Python that has Horovod without hvtrain's edits: run "
                     "benchmarks/stock_horovod.py DIR, then give DIR/bin/python")
    args.peer_kills = args.kills if args.peer_kills is None else args.peer_kills
    if min(args.kills, args.peer_kills, args.kills_per_turn, args.at_once, args.settle) < 1:
        parser.error("--kills, --peer-kills, --kills-per-turn, --at-once and --settle must be at least 1")
    if args.at_once > args.workers - (args.rank == "other"):
        parser.error(f"--at-once {args.at_once} is more workers than there are to choose from")
    return args


if __name__ == "__main__":
    sys.exit(main())
