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
from dataclasses import dataclass
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
from hvtrain.launch import measurer  # noqa: E402

BATCH = {"charlm": 16, "mlp": 128}
"""Samples of a step, over all replicas."""

SHAPES = (Shape(1, 1, 1), Shape(2, 1, 1), Shape(1, 1, 4), Shape(1, 2, 2), Shape(1, 2, 4), Shape(1, 2, 8),
          Shape(1, 2, 4, recompute=True), Shape(1, 2, 4, schedule="gpipe"))


@dataclass(frozen=True)
class Case:
    """A shape, its prediction, and the seconds of its steps in each run."""

    shape: Shape
    prediction: Prediction
    seconds: list[float]

    @property
    def error(self) -> float:
        """By how much the prediction is above the median, as a fraction of it."""
        return self.prediction.seconds / statistics.median(self.seconds) - 1

    def to_json(self) -> dict[str, Any]:
        return {"shape": vars(self.shape), "predicted": self.prediction.seconds, "compute": self.prediction.compute,
                "waiting": self.prediction.waiting, "update": self.prediction.update, "split": self.prediction.split,
                "measured": self.seconds, "error": self.error}


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that contestants are ended on the way out
    args = _arguments()
    cores = len(os.sched_getaffinity(0))
    report: dict[str, Any] = {"machine": contestants.machine(), "repeats": args.repeats, "workloads": {}}
    print(f"{report['machine']['cpu']}, {cores} cores, torch {report['machine']['torch']}, {report['machine']['date']}")
    for name in args.workloads or BATCH:
        measurement = measured(name, cores)
        cluster = Cluster(devices=cores, cores=cores, parallel=measurement.parallel)
        cases = [Case(shape, predict(measurement.costs, cluster, shape, BATCH[name]), []) for shape in SHAPES]
        for number in range(args.repeats):
            for case in cases:
                case.seconds.append(_step(name, case, args))
                if args.verbose:
                    print(f"  {number} {_name(case.shape)}: {case.seconds[-1] * 1000:.1f} ms", file=sys.stderr, flush=True)
        report["workloads"][name] = {"parallel": measurement.parallel, "slope": measurement.costs.slope,
                                     "layers": len(measurement.costs.layers), "cases": [case.to_json() for case in cases]}
        print(_table(name, measurement, cases), flush=True)
        if args.json:  # after each, so that an interrupted measurement is not lost
            Path(args.json).write_text(json.dumps(report, indent=1) + "\n")
    return 0


def measured(name: str, cores: int) -> Measurement:
    """As `hvtrain plan` measures it, with micro-batches of a quarter."""
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
        split = ",".join(map(str, case.prediction.split))
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


def _table(name: str, measurement: Measurement, cases: list[Case]) -> str:
    costs = measurement.costs
    lines = [f"\n{name}: {len(costs.layers)} layers, {BATCH[name]} samples a step, slope {costs.slope:.2f}, parallel "
             f"{measurement.parallel:.2f}",
             "| replicas x stages, micro-batches | predicted ms | measured ms (median, min, max) | error |",
             "|---|---|---|---|"]
    for case in cases:
        times = [1000 * seconds for seconds in case.seconds]
        lines.append(f"| {_name(case.shape)} | {1000 * case.prediction.seconds:.1f} | {statistics.median(times):.1f}, "
                     f"{min(times):.1f}, {max(times):.1f} | {case.error:+.0%} |")
    return "\n".join(lines)


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
