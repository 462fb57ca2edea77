"""``hvtrain run``."""

from __future__ import annotations

import os
import sys

import click


@click.command()
@click.argument("job", type=click.Path(exists=True, dir_okay=False))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("-np", "--workers", "workers", type=click.IntRange(min=1), metavar="N",
              help="Number of workers on this host; overrides launch.workers.")
@click.option("--config", "settings", type=click.Path(exists=True, dir_okay=False), metavar="FILE",
              help="With a script: a job file with its settings.")
@click.option("--chaos", "plan", type=click.Path(exists=True, dir_okay=False), metavar="PLAN",
              help="Suffer the faults of this plan (hvtrain chaos example); for tests.")
def run(job: str, overrides: tuple[str, ...], workers: int | None, settings: str | None, plan: str | None) -> int:
    """Train what the job file JOB describes, or what the Python script JOB trains.

    Settings of the file can be overridden by KEY=VALUE, for example train.epochs=3 or optim.lr=1e-4.
    A run that was interrupted goes on from its last checkpoint when the same command is given again.

    A script (train.py) is run by every worker. It trains by hvtrain.keras.fit, hvtrain.torch.fit or hvtrain.Trainer.

    By itself this starts the workers on this host. Under horovodrun each process it starts becomes one
    worker:  horovodrun -np 2 hvtrain run config.yaml

    With stages (the job's hybrid section) a worker is a replica of the model and owns several devices. -np counts
    replicas; under horovodrun, as many processes of a host as there are stages become one. What hybrid leaves at auto is
    settled first, by measuring the model (hvtrain plan).
    """
    from hvtrain.control.warmstart import guess_framework

    _check(job, settings)
    framework = guess_framework(job, (*overrides, *_text(settings)))
    if "HOROVOD_RANK" in os.environ and "HOROVOD_GLOO_RENDEZVOUS_PORT" in os.environ:
        return _under_horovodrun(job, overrides, workers, settings, framework, plan)
    return _by_itself(job, overrides, workers, settings, framework, plan)


def _check(job: str, settings: str | None) -> None:
    """Raise UsageError for what cannot be run."""
    from hvtrain.errors import UsageError

    if job.endswith(".ipynb"):
        raise UsageError(f"{job} is a notebook, which workers cannot run. Make a script of it: jupyter nbconvert --to "
                         f"script {job}; then hvtrain run {job[:-len('.ipynb')]}.py")
    if settings is not None and not job.endswith(".py"):
        raise UsageError(f"--config gives a script its settings, but {job} is no Python script (.py). Give one job "
                         f"file: hvtrain run {job}")


def _text(settings: str | None) -> tuple[str, ...]:
    """What a script's job file says, for a first look."""
    if settings is None:
        return ()
    with open(settings, encoding="utf-8", errors="replace") as file:
        return (file.read(1 << 16),)


def _load(job: str, overrides: list[str], settings: str | None, framework: str):
    """The job, and what was given explicitly if it is a script's."""
    from hvtrain.config.loading import load, load_script

    return load_script(job, framework, settings, overrides) if job.endswith(".py") else (load(job, overrides), None)


def _by_itself(path: str, overrides: tuple[str, ...], workers: int | None, settings: str | None, framework: str,
               plan: str | None) -> int:
    from hvtrain.launch.agentstart import end_agent, start_agent

    agent = start_agent(framework)  # first of all: it imports the framework while this process gets ready
    try:
        from hvtrain.launch import local
        from hvtrain.launch.joblaunch import command_line, prepare, settle
        from hvtrain.launch.settling import Ground

        job, given = _load(path, _with_workers(overrides, workers), settings, framework)
        launch = prepare(job, path, command_line(sys.argv[1:]), interface=None,
                         faults=_faults(plan, job.launch.workers or 1), given=given)
        return _run(local.run(settle(launch, Ground(launch.workers)), agent))
    finally:
        end_agent(agent)


def _under_horovodrun(path: str, overrides: tuple[str, ...], workers: int | None, settings: str | None,
                      framework: str, plan: str | None) -> int:
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
    job, given = _load(path, [*overrides, "launch.workers=null"], settings, framework)
    count = size // (stages_of(job) or 1)
    if job.hybrid is None:
        job, given = _load(path, _with_workers(overrides, None if horovodrun.is_elastic() else size), settings, framework)
    command = f"horovodrun -np {size} {command_line(sys.argv[1:])}"
    return _run(horovodrun.run(prepare(job, path, command, interface=horovodrun.interface(),
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
