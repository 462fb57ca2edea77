"""``hvtrain chaos``: check a fault plan, print an example, and tell what has struck a run."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def chaos() -> None:
    """Faults as data: plans that kill, stop, slow down or cut off workers at chosen points.

    \b
      hvtrain chaos example > plan.yaml
      hvtrain chaos check plan.yaml -np 4
      hvtrain run config.yaml -np 4 --chaos plan.yaml
      hvtrain chaos report runs/NAME
    """


@chaos.command()
@click.argument("plan", type=click.Path())
@click.option("-np", "--workers", type=click.IntRange(min=1), metavar="N",
              help="Check the ranks against so many workers.")
@click.option("--steps", type=click.IntRange(min=1), metavar="N",
              help="Check the steps against a run of so many.")
def check(plan: str, workers: int | None, steps: int | None) -> None:
    """Check the fault plan PLAN and print what it is going to do.

    Exit code 2 when there are mistakes; all of them are printed, each with its line.
    """
    from hvtrain.chaos import load
    from hvtrain.report import table

    loaded = load(plan, workers=workers, steps=steps)
    rows = [("#", "STRIKES", "FAULT")]
    for index, fault in enumerate(loaded.faults):
        rows.append((str(index), "by chance" if fault.planned is None else str(fault.planned), str(fault)))
    click.echo("\n".join(table.lines(rows)))
    known = sum(fault.planned or 0 for fault in loaded.faults)
    chance = " and those by chance" if any(fault.planned is None for fault in loaded.faults) else ""
    click.echo(f"{plan} is a valid plan: {known} strike{'' if known == 1 else 's'}{chance}, seed {loaded.seed}")


@chaos.command()
def example() -> None:
    """Print a plan with every kind of fault and comments, to start from."""
    from hvtrain.chaos.example import EXAMPLE

    click.echo(EXAMPLE, nl=False)


@chaos.command()
@click.argument("run", metavar="RUN", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
def report(run: Path, as_json: bool) -> None:
    """List the faults that have struck the run in the directory RUN."""
    import json
    import time
    from dataclasses import asdict

    from hvtrain.chaos import fired
    from hvtrain.report import table

    claims = fired(run)
    if as_json:
        click.echo(json.dumps([asdict(claim) for claim in claims], indent=1))
        return
    if not claims:
        click.echo(f"No fault has struck {run}.")
        return
    rows = [("TIME", "#", "RANK", "PID", "ROUND", "STEP", "PHASE", "FAULT")]
    for claim in claims:
        clock = time.strftime("%H:%M:%S", time.localtime(claim.time)) + f"{claim.time % 1:.3f}"[1:]
        place = [claim.rank, claim.pid, claim.round, claim.step, claim.phase or "-"] if claim.struck else ["-"] * 5
        rows.append((clock, claim.fault, *place, claim.text if claim.struck else "its process ended before it struck"))
    click.echo("\n".join(table.lines(rows)))
