"""What a lost worker costs on four hosts, beside what it costs on one machine.

    sudo python benchmarks/hosts.py --json hosts.json          20 kills each; hosts at 1 Gbit/s; 25 M parameters, Adam
    sudo python benchmarks/hosts.py --fault host               every process of a host is killed (its sshd lives)
    sudo python benchmarks/hosts.py --rate 10gbit --kills 5

The hosts are network namespaces of this machine (tests/support/hosts.py), each with an sshd and one worker; the job is
`hvtrain run -H h1:1,h2:1,h3:1,h4:1`. All share this machine's cores and memory: the network is what differs. Times run from
the kill to the next step of the whole job, and to the first step at full strength, by the clock of the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import nullcontext
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from tests.support.hosts import Hosts  # noqa: E402 - it belongs to the checkout, not to the package

MARK = "TEST_BENCH_JOB"
PLACES = {"one machine": "four workers on one machine", "hosts": "one worker on each of four hosts"}
WORKERS = 4


class Job:
    """A running job; ``net`` is None for one machine."""

    def __init__(self, args: argparse.Namespace, net: Hosts | None, folder: Path):
        self.net, self.run, self.mark = net, folder / "run", uuid.uuid4().hex
        self._log = open(folder / "output", "w+")
        where = ["-H", ",".join(f"{name}:1" for name in net.names)] if net else ["-np", str(WORKERS)]
        command = [sys.executable, "-m", "hvtrain.cli.main", "run", *where, str(HERE / "job.yaml"), f"run.dir={self.run}",
                   "task.target=task:Workload", f"task.args.workload={args.workload}", "optim.name=adamw",
                   "optim.lr=1e-4", "train.steps=1000000", f"data.global_batch={WORKERS * args.batch}", "log.every=1",
                   *args.set]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", MARK: self.mark,
                       "PYTHONPATH": f"{HERE.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        prefix = net.enter("h1", HERE) if net else ()
        self.process = subprocess.Popen([*prefix, *command], cwd=HERE, env=environment, stdin=subprocess.DEVNULL,
                                        stdout=self._log, stderr=self._log, start_new_session=True)

    def events(self) -> list[dict[str, Any]]:
        return _lines(self.run / "events.jsonl")

    def step(self) -> int:
        measured = _lines(self.run / "metrics.jsonl")
        return measured[-1]["step"] if measured else 0

    def until(self, true, what: str, seconds: float) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := true()):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self._log.seek(0)
                raise SystemExit(f"{what}: not within {seconds:g} s, or the job is over.\n{self._log.read()[-3000:]}")
            time.sleep(0.05)
        return found

    def workers(self) -> list[int]:
        """Process ids of the workers."""
        return [pid for pid, name in self._processes() if name.startswith("hvtrain-w") and name[9:].isdigit()]

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            pass
        for pid, _ in self._processes():
            _kill(pid)

    def _processes(self) -> list[tuple[int, str]]:
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and f"{MARK}={self.mark}".encode() in (entry / "environ").read_bytes():
                    found.append((int(entry.name), (entry / "comm").read_text().strip()))
            except OSError:
                continue
        return found


def disturb(job: Job, args: argparse.Namespace, chance: random.Random, kills: int) -> list[dict[str, Any]]:
    """Kill, wait until the job is at full strength again, and so on."""
    outages = []
    job.until(lambda: job.step() >= args.settle, "the first steps", args.patience)
    for _ in range(kills):
        before, reached = len(job.events()), job.step()
        job.until(lambda: job.step() >= reached + args.settle and len(job.workers()) == WORKERS, "steps in peace",
                  args.patience)
        time.sleep(chance.random())
        began = time.time()
        if args.fault == "host" and job.net:
            assert job.net.kill(chance.choice(job.net.names[1:]))
        else:
            _kill(chance.choice(job.workers()))
        lost, *rounds = job.until(lambda: _recovery(job.events()[before:]), "full strength", args.patience)
        noticed = lost["time"] - began
        outages.append({"noticed": noticed, "next_step": noticed + rounds[0]["seconds"]["first_step"],
                        "full": rounds[-1]["time"] - began, "received_bytes": rounds[-1]["received_bytes"]})
        if args.verbose:
            print("  ", {name: round(value, 2) for name, value in outages[-1].items()}, file=sys.stderr, flush=True)
    return outages


def _recovery(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A loss and the rounds from there to full strength; nothing, if that has not been reached."""
    after = [number for number, event in enumerate(events) if event["event"] == "worker_lost"]
    rounds = [event for event in events[after[0] if after else len(events):]
              if event["event"] == "round" and "first_step" in event["seconds"]]
    whole = rounds and rounds[-1]["size"] == WORKERS and "full" in rounds[-1]["seconds"]
    return [events[after[0]], *rounds] if whole else []


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that jobs are ended on the way out
    args = _arguments()
    chance = random.Random(args.seed)
    found: dict[str, list[dict[str, Any]]] = {place: [] for place in args.only}
    while any(len(outages) < args.kills for outages in found.values()):
        for place, outages in found.items():  # in turns: a slow drift of the machine touches both alike
            with Hosts(WORKERS, rate=args.rate) if place == "hosts" else nullcontext() as net:
                with tempfile.TemporaryDirectory(prefix="hvtrain-bench-", dir="/dev/shm" if not net else None) as folder:
                    job = Job(args, net, Path(folder))
                    try:
                        outages += disturb(job, args, chance, min(args.kills_per_turn, args.kills - len(outages)))
                    finally:
                        job.end()
            if args.json:
                Path(args.json).write_text(json.dumps({"arguments": vars(args), "outages": found}, indent=1))
    print(table(args, found))
    return 0


def table(args: argparse.Namespace, found: dict[str, list[dict[str, Any]]]) -> str:
    """Medians and extremes, seconds from the kill."""
    lines = [f"{args.workload} with AdamW, {WORKERS} workers, {args.fault} killed; hosts at {args.rate}",
             f"{'':36}{'kills':>6}{'next step, s':>24}{'full strength, s':>24}{'state, MB':>11}",
             f"{'':36}{'':6}{'median     min     max':>24}{'median     min     max':>24}"]
    for place, outages in found.items():
        cells = "".join(f"{statistics.median(column):8.2f}{min(column):8.2f}{max(column):8.2f}" for column in (
            [each[name] for each in outages] for name in ("next_step", "full")))
        moved = statistics.median(each["received_bytes"] for each in outages) / 1e6
        lines.append(f"{PLACES[place]:36}{len(outages):6}{cells}{moved:11.0f}")
    return "\n".join(lines)


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSON-lines file."""
    try:
        return [json.loads(line) for line in path.read_text().split("\n")[:-1]]
    except (OSError, ValueError):
        return []


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PLACES, default=list(PLACES))
    parser.add_argument("--rate", default="1gbit", help="of each host's link, both ways, as tc writes it")
    parser.add_argument("--fault", choices=["worker", "host"], default="worker", help="who is killed")
    parser.add_argument("--kills", type=int, default=20, help="for each place")
    parser.add_argument("--kills-per-turn", type=int, default=5, help="in one job, before the other place has its turn")
    parser.add_argument("--workload", default="mlp", help="one of models.py; mlp has 25.2 M parameters")
    parser.add_argument("--batch", type=int, default=8, help="samples per worker")
    parser.add_argument("--settle", type=int, default=5, help="undisturbed steps before each kill")
    parser.add_argument("--patience", type=float, default=180.0, help="seconds that anything may take")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the job")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("-v", "--verbose", action="store_true")
    args = parser.parse_args()
    if args.fault == "host":
        args.only = ["hosts"]
    return args


if __name__ == "__main__":
    sys.exit(main())
