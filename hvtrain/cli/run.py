"""``hvtrain run``."""

from __future__ import annotations

import os
import sys

import click

from hvtrain.cli import run_hosts, run_source, run_tasks
from hvtrain.cli.run_source import Source


@click.command()
@click.argument("job", required=False, metavar="JOB")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("-np", "--workers", "workers", type=click.IntRange(min=1), metavar="N",
              help="Number of workers; overrides launch.workers.")
@run_hosts.options
@click.option("--slots", type=click.IntRange(min=1), metavar="N",
              help="Workers on this host, where others come from elsewhere (hvtrain agent); -np counts all of them.")
@click.option("--config", "settings", type=click.Path(exists=True, dir_okay=False), metavar="FILE",
              help="With a script: a job file with its settings.")
@click.option("--resume", "former", type=click.Path(exists=True, file_okay=False), metavar="RUN",
              help="Instead of JOB: go on with the run in this directory, on any machine that sees it and its code.")
@click.option("--chaos", "plan", type=click.Path(exists=True, dir_okay=False), metavar="PLAN",
              help="Suffer the faults of this plan (hvtrain chaos example); for tests.")
def run(job: str | None, overrides: tuple[str, ...], workers: int | None, slots: int | None, settings: str | None,
        former: str | None, plan: str | None, **hosts) -> int:
    """Train what the job file JOB describes, or what the Python script JOB trains.

    Settings of the file can be overridden by KEY=VALUE, for example train.epochs=3 or optim.lr=1e-4.
    A run that was interrupted goes on from its last checkpoint when the same command is given again; or, without the
    command, by  hvtrain run --resume RUN  where RUN is its directory.

    A script (train.py) is run by every worker. It trains by hvtrain.keras.fit, hvtrain.torch.fit or hvtrain.Trainer.

    By itself this starts the workers on this host. Under horovodrun, mpirun and srun each process that they start becomes
    one worker:  horovodrun -np 2 hvtrain run config.yaml  or  srun -n 8 hvtrain run config.yaml

    With -H it starts them on other hosts, over ssh:  hvtrain run -H h1:4,h2:4 config.yaml  It has as many workers as
    there are slots, or -np of them. A host that is lost is tried again; hosts that the discovery script adds join.

    With --slots others join it:  hvtrain run -np 6 --slots 2 config.yaml  starts when agents bring the other four slots,
    and has as many workers as there are slots from then on. It says what to type there.

    With stages (the job's hybrid section) a worker is a replica of the model and owns several devices. -np counts
    replicas; under horovodrun, as many processes of a host as there are stages become one. What hybrid leaves at auto is
    settled first, by measuring the model (hvtrain plan).
    """
    from hvtrain.launch import tasks

    if former is not None:
        overrides = (*((job,) if job else ()), *overrides)
        files = ("hostfile", "ssh_identity_file")
        hosts |= {key: os.path.abspath(hosts[key]) for key in files if hosts[key] is not None}
        script = hosts["host_discovery_script"]  # may be a program that is found on the path
        hosts |= {"host_discovery_script": os.path.abspath(script)} if script and os.path.exists(script) else {}
        plan = os.path.abspath(plan) if plan is not None else None
        source: Source = run_source.of_run(former)  # goes where the run was started
    else:
        source = Source(click.Path(exists=True, dir_okay=False).convert(job, None, None) if job else _nothing(), settings)
    source.check()
    overrides = (*overrides, *run_hosts.overrides(hosts, workers))
    framework = source.framework(overrides)
    if "HOROVOD_RANK" in os.environ and "HOROVOD_GLOO_RENDEZVOUS_PORT" in os.environ:
        run_tasks.refuse("horovodrun", **{"--slots": slots, "-H": run_hosts.are_named(hosts) or None})
        return _under_horovodrun(source, overrides, workers, framework, plan)
    task = tasks.of_environment()
    if task is not None:
        run_tasks.refuse(task.launcher, **{"--slots": slots, "-H": run_hosts.are_named(hosts) or None})
        return run_tasks.start(source.path, task, lambda more: source.load([*overrides, *more], framework),
                               framework=framework, workers=workers, plan=plan)
    if run_hosts.are_named(hosts):
        return _on_hosts(source, overrides, workers, slots, framework, plan)
    return _by_itself(source, overrides, workers, slots, framework, plan)


def _nothing() -> str:
    raise click.UsageError("Missing argument 'JOB': a job file or a script; or give a run to go on with: --resume RUN")


def _by_itself(source: Source, overrides: tuple[str, ...], workers: int | None, slots: int | None, framework: str,
               plan: str | None) -> int:
    from hvtrain.launch.agentstart import end_agent, start_agent

    agent = start_agent(framework)  # first of all: it imports the framework while this process gets ready
    try:
        from hvtrain.launch import local
        from hvtrain.launch.joblaunch import command_line, prepare, settle
        from hvtrain.launch.settling import Ground

        job, given = source.load(_with_workers(overrides, workers), framework)
        if job.launch.names_hosts:
            end_agent(agent)  # each of them has its own
            return _on_hosts(source, overrides, workers, slots, framework, plan)
        launch = prepare(job, source.path, command_line(sys.argv[1:]), interface=None,
                         faults=_faults(plan, job.launch.workers or slots or 1), given=given, slots=slots)
        return _run(local.run(settle(launch, Ground(launch.workers)), agent))
    finally:
        end_agent(agent)


def _on_hosts(source: Source, overrides: tuple[str, ...], workers: int | None, slots: int | None, framework: str,
              plan: str | None) -> int:
    from hvtrain.launch.joblaunch import command_line

    job, given = source.load(_with_workers(overrides, workers), framework)
    return run_hosts.start(source.path, job, command_line(sys.argv[1:]), given=given, slots=slots, plan=plan)


def _under_horovodrun(source: Source, overrides: tuple[str, ...], workers: int | None, framework: str,
                      plan: str | None) -> int:
    from hvtrain.control import warmstart
    from hvtrain.launch import lives

    memory = lives.shared_memory()
    warm = warmstart.start(framework, memory.fds)
    from hvtrain.errors import ConfigError, Problem
    from hvtrain.launch import horovodrun
    from hvtrain.launch.joblaunch import command_line, prepare
    from hvtrain.launch.settling import stages_of

    size = horovodrun.world_size()
    if workers not in (None, size):
        raise ConfigError([Problem(f"horovodrun has started {size} processes, but -np {workers} was given to hvtrain; "
                                   "leave it out", "command line", key="-np")])
    # With elastic flags the number changes, and with stages a worker takes several of the processes; the first process
    # says what it was at the start.
    job, given = source.load([*overrides, "launch.workers=null"], framework)
    count = size // (stages_of(job) or 1)
    if job.hybrid is None:
        job, given = source.load(_with_workers(overrides, None if horovodrun.is_elastic() else size), framework)
    command = f"horovodrun -np {size} {command_line(sys.argv[1:])}"
    return _run(horovodrun.run(prepare(job, source.path, command, interface=horovodrun.interface(),
                                       faults=_faults(plan, max(1, count)), given=given), warm, memory))


def _faults(plan: str | None, workers: int):
    if plan is None:
        return None
    from hvtrain.chaos.loading import load

    return load(plan, workers=workers)


def _with_workers(overrides: tuple[str, ...], workers: int | None) -> list[str]:
    return [*overrides, *([f"launch.workers={workers}"] if workers else [])]


def _run(job) -> int:
    import asyncio

    return asyncio.run(job)
