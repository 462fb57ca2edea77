"""What the jobs of one contestant have shown: outages, and for hvtrain the final weights."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from contestants import HERE, ContestantFailed
from disturbance import Disturbance, Plan
from elastic_jobs import ENDLESS, KINDS, Job, Setup
from outages import complete, step_milliseconds, summary


class Findings:
    """What the jobs of one contestant have shown so far. ``args`` are recovery.py's.

    All contestants draw the same victims and moments from ``args.seed``.
    """

    def __init__(self, kind: str, args: argparse.Namespace):
        self._kind, self._args = kind, args
        self._chance = random.Random(args.seed)
        self._expected = ""  # digest of the weights of hvtrain's undisturbed job
        self._jobs: list[dict[str, Any]] = []
        self.outages: list[dict[str, Any]] = []
        self.failure = ""

    def turn(self, setup: Setup, plan: Plan, kills: int) -> None:
        """Run jobs until they have been broken so many times, or one could not be broken at all: ``failure``."""
        goal = len(self.outages) + kills
        while len(self.outages) < goal and not self.failure:
            self._job(setup, plan, goal - len(self.outages))

    def _job(self, setup: Setup, plan: Plan, kills: int) -> None:
        """Run and break one job; hvtrain's first one is preceded by one that is left alone."""
        length = plan.steps(self._args.kills_per_turn, setup.period) if self._kind == "hvtrain" else ENDLESS
        try:
            if self._kind == "hvtrain" and not self._expected:
                self._expected = self._run(setup, plan, 0, length)["digest"]
            record = self._run(setup, plan, kills, length)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            self.failure = str(error)
            print(f"{KINDS[self._kind]}: {error}", file=sys.stderr, flush=True)
            return
        if self._kind == "hvtrain":
            record["identical"] = bool(record["digest"]) and record["digest"] == self._expected
        self._jobs.append(record)

    def _run(self, setup: Setup, plan: Plan, kills: int, length: int) -> dict[str, Any]:
        with _folder() as name, Job(self._kind, setup, length, Path(name)) as job:
            disturbance = Disturbance(job, plan, self._chance)
            disturbance.run(kills)
            if kills and not disturbance.outages:
                raise ContestantFailed(f"nothing could be broken: {disturbance.ending}\n{job.account()}")
            record = {"kills": len(disturbance.outages), "ending": disturbance.ending,
                      "load_before": round(job.load, 2)}
            if self._kind == "hvtrain":
                record |= self._finish(job, disturbance, plan)
            job.look()
            if disturbance.ending != "all faults done" or record.get("exit_code"):
                record["account"] = job.account()
            full = [step for step in complete(job.lines) if step.size == setup.workers]
            record["step_ms"] = step_milliseconds(full, disturbance.pauses())
            self._tell(record, disturbance, len(self.outages))
            if self._args.logs:
                self._keep(job.folder, Path(self._args.logs) / f"{self._kind}-{len(self._jobs)}-{kills}-faults")
            self.outages += [{**vars(each), "job": len(self._jobs)} for each in disturbance.outages]
            return record

    def _finish(self, job: Job, disturbance: Disturbance, plan: Plan) -> dict[str, Any]:
        """Let a job of hvtrain run to its end; its exit code, what it left behind, and a digest of its weights."""
        hopeless = disturbance.ending == "not at full strength again"
        # one that is given up is ended by our caller
        code = job.wait(0 if hopeless else plan.start + 3 * job.steps * job.setup.period)
        if not disturbance.outages and code != 0:
            raise ContestantFailed(f"the undisturbed job ended with {code}:\n{job.account()}")
        left = len(job.pids()) if code is not None else None
        digest = ""
        if code == 0:
            done = subprocess.run([sys.executable, "-m", "hvtrain.cli.main", "ckpt", "digest", str(job.folder / "run")],
                                  env={**os.environ, "PYTHONPATH": str(HERE.parent)}, capture_output=True,
                                  text=True, timeout=120)
            digest = done.stdout.strip()
        return {"exit_code": code, "left_behind": left, "digest": digest}

    def _tell(self, record: dict[str, Any], disturbance: Disturbance, before: int) -> None:
        if not self._args.verbose:
            return
        for number, each in enumerate(disturbance.outages, before + 1):
            print(f"  {KINDS[self._kind]:26}{number:3}: rank {', '.join(map(str, each.ranks))}   next step "
                  f"{seconds(each.next_seconds)}   full strength {seconds(each.full_seconds)}   steps lost {each.lost}",
                  file=sys.stderr)
        more = f", digest {record['digest'][:12] or '-'}" if "digest" in record else ""
        print(f"  {KINDS[self._kind]:26}job over: {record['ending']}, {record['step_ms'] or 0:.0f} ms a step, "
              f"load before {record['load_before']}{more}", file=sys.stderr, flush=True)

    def _keep(self, folder: Path, to: Path) -> None:
        to.mkdir(parents=True)
        shutil.copy(folder / "output", to)
        for name in ("steps", "run"):
            if (folder / name).exists():
                shutil.copytree(folder / name, to / name)

    def report(self) -> dict[str, Any]:
        """Everything that was found, JSON-able."""
        steps = [job["step_ms"] for job in self._jobs if job["step_ms"] is not None]
        return {"next_step_s": summary([each["next_seconds"] for each in self.outages]),
                "full_strength_s": summary([each["full_seconds"] for each in self.outages]),
                "steps_lost": summary([each["lost"] for each in self.outages]),
                "step_ms": statistics.median(steps) if steps else None,
                "outages": self.outages, "jobs": self._jobs, "undisturbed_digest": self._expected,
                "failure": self.failure}


def seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.2f}"


def _folder() -> tempfile.TemporaryDirectory:
    """In memory where there is such a place: nobody's checkpoints are to wait for a disk."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    return tempfile.TemporaryDirectory(prefix="hvtrain-bench-", dir=memory)
