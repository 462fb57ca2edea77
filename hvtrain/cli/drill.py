"""``hvtrain drill``."""

from __future__ import annotations

import click


@click.command()
@click.argument("config", type=click.Path(exists=True, dir_okay=False))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("-np", "--workers", type=click.IntRange(min=1), metavar="N",
              help="Number of workers on this host; overrides launch.workers.")
@click.option("--plan", "plan_path", type=click.Path(), metavar="PLAN",
              help="A fault plan (hvtrain chaos example). Left out: kills in every phase, two at once, a stop, a cut.")
@click.option("--steps", type=click.IntRange(min=6), default=60, show_default=True, metavar="N",
              help="Steps that each of the two runs makes.")
@click.option("--limit", default="30m", show_default=True, metavar="TIME", help="A run that takes longer is given up.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
def drill(config: str, overrides: tuple[str, ...], workers: int | None, plan_path: str | None, steps: int, limit: str,
          as_json: bool) -> int:
    """Prove that the job file CONFIG survives faults: run it small, twice, undisturbed and under a fault plan.

    Reports for each fault whether the job recovered and after how many seconds, whether every sample was used exactly
    once, and whether the weights at the end are those of the undisturbed run, to the bit.

    Exit code 0 only if all is well, else 1. Everything is kept in RUN.drill beside the job's own run directory, until
    the next drill.
    """
    import json

    from hvtrain.config import Duration
    from hvtrain.drill.conduct import conduct
    from hvtrain.drill.tables import text

    if config.endswith(".py"):
        raise click.BadParameter(f"{config} is a script; a drill takes a job file, whose task it can run small. Faults for a "
                                 f"script: hvtrain run {config} --chaos plan.yaml (hvtrain chaos example)", param_hint="CONFIG")
    try:
        seconds = Duration.parse(limit).seconds
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--limit") from None
    report = conduct(config, overrides, workers=workers, plan_path=plan_path, steps=steps, limit=seconds,
                     say=lambda words: click.echo(words, err=as_json))
    click.echo(json.dumps(report.to_json(), indent=1) if as_json else f"\n{text(report)}")
    return 0 if report.ok else 1
