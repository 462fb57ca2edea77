"""What `hvtrain plan` predicts for a step against what it takes, over shapes that this machine can hold.

    python benchmarks/plan.py                          all workloads and shapes, 3 repeats in turns
    python benchmarks/plan.py charlm --repeats 5 -v --json plan.json
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import contestants
import models
from contestants import HERE, Contestant, run

sys.path.insert(0, str(HERE.parent))

from hvtrain.config import load  # noqa: E402 - of this checkout
from hvtrain.hybrid.cluster import Cluster  # noqa: E402
from hvtrain.hybrid.measurement import Measurement  # noqa: E402
from hvtrain.hybrid.prediction import Prediction, Shape, predict  # noqa: E402
from hvtrain.hybrid.speeds import Speeds, seconds  # noqa: E402
from hvtrain.launch import measurer  # noqa: E402

BATCH = {"charlm": 16, "mlp": 128}
"""Samples of a step, over all replicas."""

SHAPES = (Shape(1, 1, 1), Shape(2, 1, 1), Shape(1, 1, 4), Shape(1, 2, 2), Shape(1, 2, 4), Shape(1, 2, 8),
          Shape(1, 2, 4, recompute=True), Shape(1, 2, 4, schedule="gpipe"))


@dataclass(frozen=True)
class Case:
    """A shape; and of each repeat its prediction, and the seconds of its steps."""

    shape: Shape
    predictions: list[Prediction]
    seconds: list[float]

    @property
    def errors(self) -> list[float]:
        """By how much the predictions are above what was measured right after, as fractions of it."""
        return [found.seconds / seconds - 1 for found, seconds in zip(self.predictions, self.seconds)]

    def to_json(self) -> dict[str, Any]:
        return {"shape": vars(self.shape), "measured": self.seconds, "errors": self.errors, "predicted": [
            {"seconds": found.seconds, "compute": found.compute, "waiting": found.waiting, "update": found.update,
             "split": found.split} for found in self.predictions]}


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that contestants are ended on the way out
    args = _arguments()
    cores = len(os.sched_getaffinity(0))
    report: dict[str, Any] = {"machine": contestants.machine(), "repeats": args.repeats, "workloads": {}}
    print(f"{report['machine']['cpu']}, {cores} cores, torch {report['machine']['torch']}, {report['machine']['date']}")
    for name in args.workloads or BATCH:
        cluster = Cluster(devices=cores, cores=cores)
        cases = [Case(shape, [], []) for shape in SHAPES]
        found: list[Speeds] = []
        for number in range(args.repeats):  # each with a measurement of its own: machines have moods
            found.append(measured(name, cores).speeds)
            for case in cases:
                case.predictions.append(predict(found[-1], cluster, case.shape, BATCH[name]))
                case.seconds.append(_step(name, case, args))
                if args.verbose:
                    print(f"  {number} {_name(case.shape)}: {case.predictions[-1].seconds * 1000:.1f} ms predicted, "
                          f"{case.seconds[-1] * 1000:.1f} ms", file=sys.stderr, flush=True)
            report["workloads"][name] = {"speeds": [asdict(speeds) for speeds in found],
                                         "cases": [case.to_json() for case in cases]}
            if args.json:  # after each, so that an interrupted measurement is not lost
                Path(args.json).write_text(json.dumps(report, indent=1) + "\n")
        print(_table(name, found[-1], cases), flush=True)
    return 0


def measured(name: str, cores: int) -> Measurement:
    """As `hvtrain plan` measures it."""
    job = load(HERE / "job.yaml", [*_overrides(name), "task.args.steps=4", "hybrid={}"])
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
    return measurer.obtain(job, str(HERE), workers=1, threads=cores, fresh=True)


def _overrides(name: str) -> list[str]:
    workload = models.WORKLOADS[name]
    return [f"task.args.workload={name}", f"data.global_batch={BATCH[name]}", "launch.threads=auto",
            f"optim.name={workload.optim}", *(f"optim.{key}={value}" for key, value in workload.settings.items())]


def _step(name: str, case: Case, args: argparse.Namespace) -> float:
    """Seconds of a step, the median of a run's steady ones."""
    shape, steps = case.shape, args.steps
    hybrid: list[str] = []
    if shape.stages > 1 or shape.recompute:
        split = ",".join(map(str, case.predictions[-1].split))
        hybrid = [f"hybrid.stages={shape.stages}", f"hybrid.microbatches={shape.microbatches}", f"hybrid.split=[{split}]",
                  f"hybrid.recompute={str(shape.recompute).lower()}", f"hybrid.schedule={shape.schedule}"]
    elif shape.microbatches > 1:
        hybrid = [f"data.micro_batch={BATCH[name] // shape.replicas // shape.microbatches}"]
    contestant = Contestant(_name(shape), "hvtrain", fused=True, overrides=(*_overrides(name), *hybrid))
    found = run(contestant, name, shape.replicas, steps).steady
    return statistics.median(found["step_seconds"])


def _name(shape: Shape) -> str:
    more = [text for text, true in (("recompute", shape.recompute), ("gpipe", shape.schedule == "gpipe")) if true]
    return " ".join([f"{shape.replicas} x {shape.stages}, {shape.microbatches}", *more])


def _table(name: str, speeds: Speeds, cases: list[Case]) -> str:
    lines = [f"\n{name}: {len(speeds.largest.layers)} layers, {BATCH[name]} samples a step; the last measurement:",
             *_conditions(speeds), "",
             "| replicas x stages, micro-batches | predicted ms (median, min, max) | measured ms | error |",
             "|---|---|---|---|"]
    for case in cases:
        predicted = _spread([1000 * found.seconds for found in case.predictions], ".0f")
        times = _spread([1000 * seconds for seconds in case.seconds], ".0f")
        lines.append(f"| {_name(case.shape)} | {predicted} | {times} | {_spread(case.errors, '+.0%')} |")
    return "\n".join(lines)


def _spread(values: list[float], form: str) -> str:
    return ", ".join(format(value, form) for value in (statistics.median(values), min(values), max(values)))


def _conditions(speeds: Speeds) -> list[str]:
    """What was measured, as a line for each number of samples."""
    each = speeds.each
    lines = []
    for costs in speeds.alone:
        number = costs.batch
        wide, others = (speeds.at(number, threads) for threads in (speeds.threads, each))
        lines.append(f"- {number} samples: {1000 * seconds(costs):.1f} ms; with {speeds.threads} threads "
                     f"{1000 * seconds(wide):.1f}; {speeds.at_once} at once "
                     f"{1000 * seconds(others) * speeds.slowdown(number, speeds.at_once, each):.1f}")
    return lines


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", choices=[*BATCH, []], help="workloads; all if none is given")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each shape, in turns (3)")
    parser.add_argument("--steps", type=int, default=25, help="steps of a run, three of which are not timed (25)")
    parser.add_argument("--json", metavar="FILE", help="write everything there")
    parser.add_argument("-v", "--verbose", action="store_true", help="tell of each run")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
