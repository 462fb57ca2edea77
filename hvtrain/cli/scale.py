"""``hvtrain scale``: another number of workers for a running job."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("run", metavar="RUN", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("workers", metavar="N", type=click.IntRange(min=1, max=100_000))
def scale(run: Path, workers: int) -> None:
    """Have the job that runs in the directory RUN go on with N workers.

    \b
      hvtrain scale runs/NAME 4

    New workers join when they have built their model and data; until then the others train on. Exit code 2 when the
    job is not running, or cannot have so many workers.
    """
    from hvtrain.control import messages
    from hvtrain.control.console_client import ask
    from hvtrain.errors import UsageError

    answer = ask(run, "scale", messages.Scale(workers=workers), messages.Answer)
    if not answer.accepted:
        raise UsageError(f"not scaled: {answer.text}")
    click.echo(answer.text)
