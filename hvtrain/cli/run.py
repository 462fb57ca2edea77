"""``hvtrain run``."""

from __future__ import annotations

import asyncio
import sys

import click


@click.command()
@click.argument("config", type=click.Path(exists=True, dir_okay=False))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("-np", "--workers", "workers", type=click.IntRange(min=1), metavar="N",
              help="Number of workers on this host; overrides launch.workers.")
def run(config: str, overrides: tuple[str, ...], workers: int | None) -> int:
    """Train what the job file CONFIG describes.

    Settings of the file can be overridden by KEY=VALUE, for example train.epochs=3 or optim.lr=1e-4.
    A run that was interrupted goes on from its last checkpoint when the same command is given again.

    By itself this starts the workers on this host. Under horovodrun each process it starts becomes one
    worker:  horovodrun -np 2 hvtrain run config.yaml
    """
    from hvtrain.config import load
    from hvtrain.errors import ConfigError, Problem
    from hvtrain.launch import horovodrun, local
    from hvtrain.launch.joblaunch import command_line, prepare

    command = command_line(sys.argv[1:])
    under_horovodrun = horovodrun.is_parent()
    if under_horovodrun:
        size = horovodrun.world_size()
        if workers not in (None, size):
            raise ConfigError([Problem(f"horovodrun has started {size} processes, but -np {workers} was given to "
                                       "hvtrain; leave it out", "command line", key="-np")])
        workers, command = size, f"horovodrun -np {size} {command}"
    job = load(config, [*overrides, *([f"launch.workers={workers}"] if workers else [])])
    if under_horovodrun:
        return asyncio.run(horovodrun.run(prepare(job, config, command, interface=horovodrun.interface())))
    return asyncio.run(local.run(prepare(job, config, command, interface=None)))
