"""``hvtrain health``: does the coordinator or agent of this container do its work?"""

from __future__ import annotations

import click

UNHEALTHY = 1
"""What Docker takes for unhealthy; it knows no other code."""


@click.command()
def health() -> None:
    """Say whether the coordinator or agent that runs beside this command is well; for a container's health check.

    Reads the signs of life that they write into the directory that the environment variable HVTRAIN_HEALTH names: a
    coordinator while it serves its agents, an agent while it is connected to its coordinator. Exit code 0 when all are
    recent, 1 when one is not or there is none.
    """
    import os
    from pathlib import Path

    from hvtrain.control import health as signs
    from hvtrain.errors import UsageError

    directory = os.environ.get(signs.VARIABLE)
    if not directory:
        raise UsageError(f"{signs.VARIABLE} is not set. Set it to a directory before the job starts, and for this "
                         f"command: export {signs.VARIABLE}=/tmp/hvtrain-health")
    found = signs.read(Path(directory))
    for sign in found:
        click.echo(f"{'ok' if sign.good else 'BAD':<3}  {sign.role}: {sign.text}, {sign.age:.1f} s ago")
    if not found:
        click.echo("BAD  neither a coordinator nor an agent has been connected here yet")
    if not found or not all(sign.good for sign in found):
        raise SystemExit(UNHEALTHY)
