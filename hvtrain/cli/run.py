"""``hvtrain run``."""

from __future__ import annotations

import os
import sys

import click


@click.command()
@click.argument("config", type=click.Path(exists=True, dir_okay=False))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("-np", "--workers", "workers", type=click.IntRange(min=1), metavar="N",
              help="Number of workers on this host; overrides launch.workers.")
@click.option("--chaos", "plan", type=click.Path(exists=True, dir_okay=False), metavar="PLAN",
              help="Suffer the faults of this plan (hvtrain chaos example); for tests.")
def run(config: str, overrides: tuple[str, ...], workers: int | None, plan: str | None) -> int:
    """Train what the job file CONFIG describes.

    Settings of the file can be overridden by KEY=VALUE, for example train.epochs=3 or optim.lr=1e-4.
    A run that was interrupted goes on from its last checkpoint when the same command is given again.

    By itself this starts the workers on this host. Under horovodrun each process it starts becomes one
    worker:  horovodrun -np 2 hvtrain run config.yaml
    """
    from hvtrain.control.warmstart import guess_framework

    framework = guess_framework(config, overrides)
    if "HOROVOD_RANK" in os.environ and "HOROVOD_GLOO_RENDEZVOUS_PORT" in os.environ:
        return _under_horovodrun(config, overrides, workers, framework, plan)
    return _by_itself(config, overrides, workers, framework, plan)


def _by_itself(config: str, overrides: tuple[str, ...], workers: int | None, framework: str,
               plan: str | None) -> int:
    from hvtrain.launch.agentstart import end_agent, start_agent

    agent = start_agent(framework)  # first of all: it imports the framework while this process gets ready
    try:
        from hvtrain.config import load
        from hvtrain.launch import local
        from hvtrain.launch.joblaunch import command_line, prepare

        job = load(config, _with_workers(overrides, workers))
        launch = prepare(job, config, command_line(sys.argv[1:]), interface=None, faults=_faults(plan, job))
        return _run(local.run(launch, agent))
    finally:
        end_agent(agent)


def _under_horovodrun(config: str, overrides: tuple[str, ...], workers: int | None, framework: str,
               plan: str | None) -> int:
    from hvtrain.control import warmstart
    from hvtrain.launch import lives

    memory = lives.shared_memory()
    warm = warmstart.start(framework, memory.fds)
    from hvtrain.config import load
    from hvtrain.errors import ConfigError, Problem
    from hvtrain.launch import horovodrun
    from hvtrain.launch.joblaunch import command_line, prepare

    size = horovodrun.world_size()
    if workers not in (None, size):
        raise ConfigError([Problem(f"horovodrun has started {size} processes, but -np {workers} was given to hvtrain; "
                                   "leave it out", "command line", key="-np")])
    # With elastic flags the number changes; the first process says what it was at the start.
    job = load(config, _with_workers(overrides, None if horovodrun.is_elastic() else size))
    command = f"horovodrun -np {size} {command_line(sys.argv[1:])}"
    return _run(horovodrun.run(prepare(job, config, command, interface=horovodrun.interface(),
                                       faults=_faults(plan, job)), warm, memory))


def _faults(plan: str | None, job):
    if plan is None:
        return None
    from hvtrain.chaos.loading import load

    return load(plan, workers=job.launch.workers or 1)


def _with_workers(overrides: tuple[str, ...], workers: int | None) -> list[str]:
    return [*overrides, *([f"launch.workers={workers}"] if workers else [])]


def _run(job) -> int:
    import asyncio

    return asyncio.run(job)
