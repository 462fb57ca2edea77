"""What every launcher does with a job: decide on workers and threads, run the coordinator, report the end."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shlex
import signal
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Awaitable, Callable

from hvtrain.config import Job
from hvtrain.config.loading import Given
from hvtrain.chaos.plan import Plan
from hvtrain.checkpoint.store import Store
from hvtrain.control import auth, health
from hvtrain.control.boot import Boot
from hvtrain.control.causes import Cause
from hvtrain.control.client import Address
from hvtrain.control.coordinator import Coordinator
from hvtrain.control.events import JobFailed
from hvtrain.control.roster import Limits
from hvtrain.control.sums import Sums
from hvtrain.errors import EnvironmentNotReady, ExitCode, HvtrainError
from hvtrain.launch import measurer, network, settling, storms, tokens
from hvtrain.launch.offering import Offer
from hvtrain.launch.settling import Ground, Settled, chosen_threads, threads_each
from hvtrain.report import console as consoles
from hvtrain.report.reporter import Reporter
from hvtrain.report.rundir import RunDirectory
from hvtrain.saving import checkpoint_directory


@dataclass(frozen=True)
class JobLaunch:
    """A job that is about to run: ``workers`` on ``interface``, user code found from ``module_dir``.

    ``faults`` is a plan of faults that it is to suffer; ``start`` counts the starts of the run; ``given`` is what a
    script's job was told explicitly; ``settled`` says how a hybrid job's open numbers were found. ``slots``: as many are
    on this host, and agents from elsewhere bring others; None: no others are expected. ``address``: where the coordinator
    listens; the first of the interface, if None. ``config_path``: the job file, or the script.
    """

    job: Job
    workers: int
    interface: str
    module_dir: str
    command: str
    faults: Plan | None = None
    start: int = 1
    given: Given = field(default_factory=Given)
    settled: Settled | None = None
    slots: int | None = None
    address: str | None = None
    config_path: str = ""

    @property
    def size(self) -> int:
        """How many workers the job was started with, also if this is not the process that did."""
        return self.job.launch.workers or self.workers

    @property
    def digest(self) -> str:
        """Equal for agents that were started with the same job; and after the colon, for the same start of the run."""
        text = json.dumps(self.job.model_dump(mode="json"), sort_keys=True)
        return f"{hashlib.sha256(text.encode()).hexdigest()[:48]}:{self.start}"

    def record(self, workers_here: int) -> dict[str, Any]:
        """:meth:`boot` as JSON for an agent that knows the coordinator's address and the token itself."""
        whole = self.boot(Address("", 0, ""), workers_here).to_json()
        return {key: value for key, value in whole.items() if key not in ("coordinator", "snapshots")}

    def boot(self, address: Address, workers_here: int) -> Boot:
        """What this host's workers must know, of which there are ``workers_here``."""
        return Boot(job=self.job, coordinator=address, module_dir=self.module_dir,
                    run_dir=os.path.abspath(self.job.run.dir), threads=threads_each(self.job, workers_here),
                    start=self.start, faults=self.faults.model_dump(mode="json") if self.faults is not None else None,
                    given=self.given)


def prepare(job: Job, config_path: str, command: str, *, interface: str | None, faults: Plan | None = None,
            given: Given | None = None, slots: int | None = None) -> JobLaunch:
    """Settle what the job file (or script) at ``config_path`` leaves open: ``interface`` is what another launcher has
    chosen."""
    if job.launch.interface is None and interface is None:
        interface = network.loopback() if slots is None else network.outward()
    return JobLaunch(job, job.launch.workers or slots or 1, job.launch.interface or str(interface),
                     str(Path(config_path).resolve().parent), command, faults, RunDirectory(job.run.dir).starts() + 1,
                     given or Given(), slots=slots, config_path=str(Path(config_path).resolve()))


def settle(launch: JobLaunch, ground: Ground) -> JobLaunch:
    """``launch`` with nothing left open in ``hybrid``, for workers on this ``ground``; raises as
    :func:`hvtrain.launch.settling.settle`."""
    settled = settling.settle(launch.job, launch.module_dir, ground, consoles.choose(launch.job.log.console).say)
    return replace(launch, job=settled.job, settled=settled)


def limits_of(job: Job) -> Limits:
    """The bounds that the job file sets to the membership."""
    elastic, launch = job.elastic, job.launch
    return Limits(
        start=launch.start_timeout.seconds, stop=launch.stop_timeout.seconds,
        heartbeat=elastic.heartbeat_timeout.seconds,
        replace=None if elastic.replace_timeout == "auto" else elastic.replace_timeout.seconds,
        form=job.comm.timeout.seconds, step=None if elastic.step_timeout == "auto" else elastic.step_timeout.seconds,
        elastic=elastic.enabled, min_workers=elastic.min_workers, max_workers=elastic.max_workers,
        spares=elastic.spares, failures_per_step=elastic.max_failures_per_step,
        losses_per_hour=elastic.max_losses_per_hour, tail=job.task.script is not None)


async def coordinate(launch: JobLaunch, start_agents: Callable[[Address, Coordinator], Awaitable[None]], *,
                     follow: bool = False, on_drop: Callable[[str], None] = lambda name: None,
                     token: str | None = None, drawn: bool = False, open_to_all: bool = False) -> int:
    """Run the job's coordinator to the job's end; returns the exit code.

    SIGINT and SIGTERM ask the workers to stop.

    Args:
        start_agents: called once the coordinator listens.
        follow: the job takes every slot that agents offer.
        on_drop: called with the name of an agent that is lost.
        token: the job's; the one that the user gives if None, or a new one.
        drawn: ``token`` is a new one, which the user does not know.
        open_to_all: say how agents from elsewhere can join.
    """
    job = launch.job
    given = token or tokens.given(job.launch.token_file)
    token = given or auth.new_token()
    reporter = Reporter(job, workers=launch.workers, command=launch.command, code=launch.module_dir,
                        given=asdict(launch.given) if job.task.script is not None else None)
    reporter.open()
    try:
        _keep_plan(launch.settled, reporter)
        coordinator = Coordinator(wanted=launch.workers, limits=limits_of(job), token=token,
                                  host=launch.address or network.address_of(launch.interface),
                                  interface=job.launch.interface or "",
                                  job_digest=launch.digest, observer=reporter, follow=follow, on_drop=on_drop,
                                  sums=Sums(reporter.directory.sums, workers=launch.size,
                                            threads=chosen_threads(job)),
                                  port=job.launch.port or 0, tls=job.launch.tls, offer=Offer(launch, expected=open_to_all))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, coordinator.request_stop, number)
        port = await _listen(coordinator, job)
        reporter.directory.announce({"host": coordinator.host, "port": port, "token": coordinator.client_token,
                                     "tls": job.launch.tls, "pid": os.getpid()})
        if open_to_all:
            _invite(launch, reporter, f"{_bracket(coordinator.host)}:{port}", token if drawn or not given else None)
        storm = asyncio.create_task(storms.rage(launch.faults, coordinator, reporter.directory.path))
        signs = health.Signs("coordinator")
        alive = asyncio.create_task(signs.keep(lambda: f"serves {len(coordinator.agents())} agents at port {port}"))
        try:
            await start_agents(Address(coordinator.host, port, token, job.launch.tls), coordinator)
        except HvtrainError as error:
            coordinator.feed(JobFailed(Cause(int(error.exit_code), str(error), salvage=False)))
        cause = await coordinator.wait()
        storm.cancel()
        alive.cancel()
        signs.end()
        await coordinator.close(cause)
        _tell(launch, reporter, cause)
        return int(cause.exit_code)
    finally:
        tokens.forget(Path(job.run.dir) / tokens.FILE, token)
        reporter.close(state="failed", exit_code=int(ExitCode.ENVIRONMENT), reason="the launcher failed")


async def _listen(coordinator: Coordinator, job: Job) -> int:
    try:
        return await coordinator.start()
    except OSError as error:
        where = f"{coordinator.host} port {job.launch.port}" if job.launch.port else coordinator.host
        raise EnvironmentNotReady(f"the job's coordinator cannot listen at {where}: {error.strerror}. Choose another port "
                                  "with launch.port=N, or leave it out") from None


def _invite(launch: JobLaunch, reporter: Reporter, where: str, drawn: str | None) -> None:
    """Say how others join; a token that was ``drawn`` for this start is laid where they find it."""
    file = launch.job.launch.token_file
    if drawn is not None:
        path = reporter.directory.path.absolute() / tokens.FILE
        tokens.keep(path, drawn)
        file = str(path)
    proof = f"--token-file {shlex.quote(os.path.abspath(file))}" if file else f"   (and {tokens.VARIABLE} as here)"
    reporter.console.say(f"join with: hvtrain agent --coordinator {where} {proof}")


def _bracket(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _keep_plan(settled: Settled | None, reporter: Reporter) -> None:
    """After the run directory was taken, or a former run moved aside: what was measured belongs to this one."""
    if settled is None or settled.measurement is None:
        return
    measurer.keep(reporter.directory.path, settled.measurement)
    hybrid = settled.job.hybrid
    assert hybrid is not None and settled.prediction is not None
    reporter.event("planned", stages=hybrid.stages, microbatches=hybrid.microbatches, split=hybrid.split,
                   expected_seconds=round(settled.prediction.seconds, 6))
    reporter.console.say(settled.note)


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
        reporter.console.say(_success(reporter.results, str(directory), reporter.account))
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


def _success(results: dict, directory: str, faults: dict) -> str:
    metrics = "  ".join(f"{name} {value:.4f}" for name, value in results.get("metrics", {}).items())
    # Rank 0 knows what it has seen itself; it may have joined late, in a lost one's place.
    account = faults if faults.get("steps") else results
    steps, seconds = account.get("steps", 0), account.get("seconds", 0.0)
    head = f"done: {steps:,} steps in {seconds:.1f} s" if steps else (
        "nothing to do: this run is complete (start it over with checkpoint.resume=never)")
    best = results.get("best")
    tail = f"\nbest: {best:.4f} at step {results['best_step']:,}" if best is not None else ""
    return f"{head}\nresult: {metrics or 'no evaluation'}{tail}\n{_faults(faults)}run directory: {directory}"


def _faults(faults: dict) -> str:
    """One line about what went wrong and was mended; nothing if nothing did."""
    lost, goodput = faults.get("lost_workers", 0), faults.get("goodput")
    if not lost or goodput is None:
        return ""
    again = f", {faults['repeated_steps']:,} steps taken again" if faults["repeated_steps"] else ", no step lost"
    return (f"faults: {lost} worker{'s' if lost > 1 else ''} lost{again}, {faults['seconds_down']:.1f} s down, goodput "
            f"{goodput:.1%} (see events.jsonl)\n")


def command_line(arguments: list[str]) -> str:
    """The command that was typed, for messages."""
    return shlex.join(["hvtrain", *arguments])
