"""``hvtrain doctor``: can training work here, and if not, what to type."""

from __future__ import annotations

import json

import click

_MARKS = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object with everything that was read.")
@click.option("--dir", "directory", default=".", metavar="DIRECTORY", show_default=True,
              help="Where checkpoints would go; its disk is looked at.")
def doctor(as_json: bool, directory: str) -> None:
    """Check Python, frameworks, engine, compiler, GPUs, memory, network and disk.

    Exit code 3 when training cannot work; the command that mends it is printed beside the finding.
    """
    from hvtrain.engine.doctor import can_train, run_doctor, to_json
    from hvtrain.errors import ExitCode

    checks, facts = run_doctor(directory)
    if as_json:
        click.echo(json.dumps(to_json(checks, facts), indent=2))
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            click.echo(f"{_MARKS[check.status.value]}  {check.name:<{width}}  {check.message}")
            if check.remedy:
                click.echo(f"{'':<{width + 8}}mend it with: {check.remedy}")
        click.echo("Training can work here." if can_train(checks) else "Training cannot work here yet.")
    if not can_train(checks):
        raise SystemExit(int(ExitCode.ENVIRONMENT))
