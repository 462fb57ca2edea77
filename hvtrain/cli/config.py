"""``hvtrain config``: look at a job file without running it."""

from __future__ import annotations

import click

_OVERRIDES = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
_FILE = click.argument("file", type=click.Path())


@click.group()
def config() -> None:
    """Show or check a job file, or print its schema.

    A value is taken from KEY=VALUE (optim.lr=1e-3) before the environment (HVTRAIN_OPTIM__LR=1e-3), before
    the file, before the default.
    """


@config.command()
@_FILE
@_OVERRIDES
def show(file: str, overrides: tuple[str, ...]) -> None:
    """Print the job as it would run, with all defaults, as YAML."""
    from hvtrain.config import dump, load

    click.echo(dump(load(file, overrides)), nl=False)


@config.command()
@_FILE
@_OVERRIDES
def validate(file: str, overrides: tuple[str, ...]) -> None:
    """Check the job; print every mistake with its line.

    Exit code 2 when there are mistakes.
    """
    from hvtrain.config import load

    load(file, overrides)
    click.echo(f"{file} is a valid job")


@config.command()
def schema() -> None:
    """Print the JSON Schema of job files, for editors.

    Save it, and put this on the first line of a job file:

    \b
      # yaml-language-server: $schema=PATH
    """
    import json

    from hvtrain.config import schema as make

    click.echo(json.dumps(make(), indent=2))
