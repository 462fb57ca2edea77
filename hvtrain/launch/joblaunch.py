"""What every launcher does with a job: decide on workers and threads, run the coordinator, report the end."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shlex
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Awaitable, Callable

from hvtrain.config import Job
from hvtrain.checkpoint.store import Store
from hvtrain.control import auth
from hvtrain.control.boot import Boot
from hvtrain.control.causes import Cause
from hvtrain.control.client import Address
from hvtrain.control.coordinator import Coordinator
from hvtrain.control.events import JobFailed
from hvtrain.control.roster import Limits
from hvtrain.errors import ExitCode, HvtrainError
from hvtrain.launch import network
from hvtrain.report.reporter import Reporter
from hvtrain.saving import checkpoint_directory


@dataclass(frozen=True)
class JobLaunch:
    """A job that is about to run: ``workers`` on ``interface``, user code found from ``module_dir``."""

    job: Job
    workers: int
    interface: str
    module_dir: str
    command: str

    @property
    def digest(self) -> str:
        """Equal for agents that were started with the same job."""
        text = json.dumps(self.job.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def boot(self, address: Address, workers_here: int) -> Boot:
        """What this host's workers must know, of which there are ``workers_here``."""
        return Boot(job=self.job, coordinator=address, module_dir=self.module_dir,
                    run_dir=os.path.abspath(self.job.run.dir), threads=threads_each(self.job, workers_here))


def prepare(job: Job, config_path: str, command: str, *, interface: str | None) -> JobLaunch:
    """Settle what the job file leaves open: ``interface`` is what another launcher has chosen."""
    return JobLaunch(job, job.launch.workers or 1, job.launch.interface or interface or network.loopback(),
                     str(Path(config_path).resolve().parent), command)


def threads_each(job: Job, workers_here: int) -> int:
    """CPU threads of each of ``workers_here`` workers on this host."""
    wanted = job.launch.threads
    return wanted if isinstance(wanted, int) else max(1, len(os.sched_getaffinity(0)) // workers_here)


async def coordinate(launch: JobLaunch, start_agents: Callable[[Address, Coordinator], Awaitable[None]]) -> int:
    """Run the job's coordinator to the job's end; returns the exit code.

    ``start_agents`` is called once the coordinator listens. SIGINT and SIGTERM ask the workers to stop.
    """
    job = launch.job
    reporter = Reporter(job, workers=launch.workers, command=launch.command)
    reporter.open()
    try:
        token = auth.new_token()
        limits = Limits(start=job.launch.start_timeout.seconds, stop=job.launch.stop_timeout.seconds,
                        heartbeat=job.elastic.heartbeat_timeout.seconds,
                        verdict=job.elastic.replace_timeout.seconds)
        coordinator = Coordinator(wanted=launch.workers, limits=limits, token=token,
                                  host=network.address_of(launch.interface), interface=launch.interface,
                                  job_digest=launch.digest, observer=reporter)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, coordinator.request_stop, number)
        port = await coordinator.start()
        try:
            await start_agents(Address(coordinator.host, port, token), coordinator)
        except HvtrainError as error:
            coordinator.feed(JobFailed(Cause(int(error.exit_code), str(error), salvage=False)))
        cause = await coordinator.wait()
        await coordinator.close(cause)
        _tell(launch, reporter, cause)
        return int(cause.exit_code)
    finally:
        reporter.close(state="failed", exit_code=int(ExitCode.ENVIRONMENT), reason="the launcher failed")


def _tell(launch: JobLaunch, reporter: Reporter, cause: Cause) -> None:
    code = ExitCode(cause.exit_code) if cause.exit_code in list(ExitCode) else ExitCode.USER_CODE
    state = {ExitCode.DONE: "done", ExitCode.INTERRUPTED: "stopped", ExitCode.TERMINATED: "stopped"}.get(code, "failed")
    try:
        reporter.close(state=state, exit_code=int(code), reason=cause.reason,
                       resumable=code.resumable and launch.job.checkpoint.every is not None)
    except OSError as error:  # a full disk must not hide how the job ended
        print(f"hvtrain: the run directory could not be updated: {error}", file=sys.stderr)
    directory = reporter.directory.path
    if code is ExitCode.DONE:
        reporter.console.say(_success(reporter.results, str(directory)))
        return
    out = [f"hvtrain: {cause.reason}"]
    if cause.traceback:
        out += ["", cause.traceback.rstrip(), ""]
    if cause.rank is not None:
        out.append(f"its log: {directory / 'logs' / f'rank-{cause.rank}.log'}")
    out.append(f"run directory: {directory}")
    if launch.job.checkpoint.resume != "never" and Store(checkpoint_directory(launch.job)).steps():
        out.append(f"go on from the last checkpoint with: {launch.command}")
    print("\n".join(out), file=sys.stderr, flush=True)


def _success(results: dict, directory: str) -> str:
    metrics = "  ".join(f"{name} {value:.4f}" for name, value in results.get("metrics", {}).items())
    steps, seconds = results.get("steps", 0), results.get("seconds", 0.0)
    head = f"done: {steps:,} steps in {seconds:.1f} s" if steps else (
        "nothing to do: this run is complete (start it over with checkpoint.resume=never)")
    best = results.get("best")
    tail = f"\nbest: {best:.4f} at step {results['best_step']:,}" if best is not None else ""
    return f"{head}\nresult: {metrics or 'no evaluation'}{tail}\nrun directory: {directory}"


def command_line(arguments: list[str]) -> str:
    """The command that was typed, for messages."""
    return shlex.join(["hvtrain", *arguments])
