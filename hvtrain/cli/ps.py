"""``hvtrain ps``: who works in a running job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("run", metavar="RUN", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with job, agents and workers.")
def ps(run: Path, as_json: bool) -> None:
    """List the agents and workers of the job that runs in the directory RUN.

    \b
      hvtrain ps runs/NAME

    A worker's slot counts the workers of its host. Exit code 2 when the job is not running.
    """
    import json

    from hvtrain.control import messages
    from hvtrain.control.console_client import ask

    found = ask(run, "ps", messages.Query(), messages.Overview)
    click.echo(json.dumps(found.model_dump(exclude={"type"}), indent=1) if as_json else _text(found.model_dump()))


def _text(found: dict[str, Any]) -> str:
    from hvtrain.report import table

    job = found["job"]
    workers = f"{job['size']} of {job['target']} workers"
    head = f"round {job['round']} ({job['status']}), {workers}, step {job['step']:,}" if job["round"] else (
        f"no round yet, {job['target']} workers wanted")
    agents = [("AGENT", "HOST", "SLOTS", "PID", "WORKERS", "STATE")]
    agents += [_cells(agent, "agent", "host", "slots", "pid", "workers", "state") for agent in found["agents"]]
    rows = [("WORKER", "HOST", "SLOT", "PID", "RANK", "ROUND", "STEP", "STATE")]
    rows += [_cells(worker, "worker", "host", "slot", "pid", "rank", "round", "step", "state")
             for worker in found["workers"]]
    return "\n".join([head, "", *table.lines(agents), "", *table.lines(rows)])


def _cells(row: dict[str, Any], *keys: str) -> tuple[str, ...]:
    return tuple("-" if row.get(key) is None else str(row[key]) for key in keys)
