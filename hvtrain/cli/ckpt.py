"""``hvtrain ckpt``: look at, check, thin out and export checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from hvtrain.checkpoint import Store
    from hvtrain.cli.ckpt_target import Target

_RUN = click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
_STEP = click.option("--step", metavar="N|newest|best",
                     help="Which checkpoint; newest is the newest sound one.")
_METRIC = click.option("--metric", metavar="NAME", help="What is best; default: checkpoint.best of the run.")


@click.group()
def ckpt() -> None:
    """List, verify, prune and export checkpoints.

    RUN is a run directory, its checkpoints directory, or one checkpoint directory.
    """


@ckpt.command("ls")
@_RUN
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
def list_checkpoints(run: Path, as_json: bool) -> None:
    """List the checkpoints of RUN with position, size and metrics.

    Sizes are looked at, contents are not; `verify` reads every byte.
    """
    target = _target(run)
    rows = [_row(target.store, path) for path in sorted(target.paths())]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    if not rows:
        click.echo(f"No checkpoints in {target.store.directory}.")
        return
    table = [("NAME", "STEP", "EPOCH", "CURSOR", "WORLD", "SIZE", "CREATED", "METRICS")]
    for row in rows:
        if row["problems"]:
            table.append((row["name"], *["-"] * 6, "damaged: " + "; ".join(row["problems"])))
        else:
            metrics = " ".join(f"{name}={float(value):.6g}" for name, value in sorted(row["metrics"].items()))
            table.append((row["name"], *(str(row[key]) for key in ("step", "epoch", "cursor", "world_size")),
                          _size(row["bytes"]), row["created"][:19].replace("T", " "), metrics))
    widths = [max(len(line[column]) for line in table) for column in range(7)]
    for line in table:
        click.echo("  ".join([*(cell.ljust(width) for cell, width in zip(line, widths)), line[7]]).rstrip())


@ckpt.command()
@_RUN
@_STEP
@_METRIC
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
def verify(run: Path, step: str | None, metric: str | None, as_json: bool) -> None:
    """Read every byte of the checkpoints of RUN, or of one, and compare with the manifest.

    Exit code 4 when something is damaged or there is nothing.
    """
    from hvtrain.checkpoint import verify as problems_of
    from hvtrain.errors import CheckpointDamaged, CheckpointMissing

    target = _target(run)
    paths = sorted(target.paths()) if step is None else [target.pick(step, metric)]
    if not paths:
        raise CheckpointMissing(f"No checkpoints in {target.store.directory}.")
    results = [(path, problems_of(path)) for path in paths]
    if as_json:
        click.echo(json.dumps([{"name": path.name, "path": str(path), "sound": not problems,
                                "problems": problems} for path, problems in results], indent=1))
    else:
        for path, problems in results:
            click.echo(f"{path.name}: {'; '.join(problems) or 'sound'}")
    damaged = [path.name for path, problems in results if problems]
    if damaged:
        raise CheckpointDamaged(f"{len(damaged)} of {len(results)} checkpoints in {target.store.directory} "
                                f"damaged: {', '.join(damaged)}.")


@ckpt.command()
@_RUN
@click.option("--keep", type=click.IntRange(min=1),
              help="How many of the newest stay; default: checkpoint.keep of the run.")
@_METRIC
@click.option("--dry-run", is_flag=True, help="Only say what would be deleted.")
def prune(run: Path, keep: int | None, metric: str | None, dry_run: bool) -> None:
    """Delete old checkpoints of RUN: all but the newest, the best, and every checkpoint.keep_every-th.

    What is to stay is read first; damaged checkpoints do not count and are not deleted.
    """
    from hvtrain.errors import UsageError

    target = _target(run)
    if target.single is not None:
        raise UsageError(f"prune works on a run or its checkpoints directory; {run} is one checkpoint.")
    if not dry_run:
        target.store.clean()
    for path in target.store.prune(target.retention(keep, metric), quick=False, dry_run=dry_run):
        click.echo(f"{'would delete' if dry_run else 'deleted'} {path.name}")


@ckpt.command()
@_RUN
@_STEP
@_METRIC
@click.option("--to", "output", required=True, metavar="FILE|DIRECTORY", type=click.Path(path_type=Path),
              help="What to write: FILE.safetensors; with Keras also FILE.keras, or a directory for a SavedModel.")
@click.option("--weights", type=click.Choice(["model", "ema"]), default="model", show_default=True,
              help="The weights as trained, or their moving average.")
@click.option("--code", metavar="DIRECTORY", type=click.Path(path_type=Path, exists=True, file_okay=False),
              help="For whole models: where task.target is found; default: where the run found it.")
@click.option("--force", is_flag=True, help="Replace what exists.")
def export(run: Path, step: str | None, metric: str | None, output: Path, weights: str, code: Path | None,
           force: bool) -> None:
    """Write the weights of a checkpoint (default: the newest) as one safetensors file, or the whole Keras model.

    With --weights ema, what has no moving average (such as counters) is taken from the model.
    """
    from hvtrain.checkpoint.export import export_weights
    from hvtrain.errors import UsageError

    if output.suffix not in (".safetensors", ".keras", ""):
        raise UsageError(f"--to must name a file that ends in .safetensors or .keras, or a directory; got {output}.")
    if output.exists() and not force:
        raise UsageError(f"{output} exists already. Replace it with: --force")
    target = _target(run)
    path = target.pick(step or "newest", metric)
    if output.suffix != ".safetensors":
        from hvtrain.cli import ckpt_model

        ckpt_model.export(target, path, output, weights, code)
        click.echo(f"{output}: the model of {path.name}")
        return
    size = export_weights(target.store, path, output, weights)
    click.echo(f"{output}: {weights} weights of {path.name}, {_size(size)}")


@ckpt.command("digest")
@_RUN
@_STEP
@_METRIC
@click.option("--weights", type=click.Choice(["model", "ema"]), default="model", show_default=True,
              help="The weights as trained, or their moving average.")
def print_digest(run: Path, step: str | None, metric: str | None, weights: str) -> None:
    """Print one sha256 over all weights of a checkpoint (default: the newest).

    Equal digests mean equal names, dtypes, shapes and bits, whatever else differs between two runs.
    """
    from hvtrain.checkpoint.digest import digest

    click.echo(digest(_target(run).pick(step or "newest", metric), weights))


def _target(run: Path) -> Target:
    from hvtrain.cli.ckpt_target import Target

    return Target.locate(run)


def _row(store: Store, path: Path) -> dict[str, Any]:
    from hvtrain.checkpoint import verify as problems_of
    from hvtrain.errors import CheckpointError

    row: dict[str, Any] = {"name": path.name, "path": str(path), "problems": problems_of(path, quick=True)}
    if not row["problems"]:
        try:
            manifest = store.manifest(path)
        except CheckpointError as error:  # replaced or removed between the two looks
            return {**row, "problems": [str(error)]}
        shown = {"step", "epoch", "cursor", "world_size", "created", "framework", "metrics"}
        row.update(manifest.model_dump(include=shown), bytes=manifest.nbytes, groups=manifest.groups)
    return row


def _size(count: int) -> str:
    from hvtrain.checkpoint.disk import human_size

    return human_size(count)
