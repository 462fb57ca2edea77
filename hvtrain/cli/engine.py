"""``hvtrain engine``: compile Horovod with hvtrain's edits, and look at what is installed."""

from __future__ import annotations

import json

import click


@click.group()
def engine() -> None:
    """Build the engine (Horovod plus edits) and show what is installed."""


@engine.command()
@click.option("--force", is_flag=True, help="Compile and install even if a fitting engine is there.")
@click.option("--no-install", is_flag=True, help="Only put the wheel into the cache and print its path.")
def build(force: bool, no_install: bool) -> None:
    """Compile Horovod for the installed frameworks and install it into this Python.

    Takes minutes the first time; the wheel is cached (HVTRAIN_CACHE, default ~/.cache/hvtrain) for each set of
    framework versions. Horovod's build variables, such as HOROVOD_GPU_OPERATIONS, HOROVOD_WITH_MPI and
    HOROVOD_NCCL_HOME, are respected; HOROVOD_WITHOUT_TENSORFLOW=1 leaves TensorFlow out.
    """
    from hvtrain.engine.build import build_engine, install_engine
    from hvtrain.engine.info import engine_info
    from hvtrain.engine.recipe import current_recipe

    if not (force or no_install) and _is_installed(current_recipe().key):
        click.echo("The engine for the installed frameworks is already here. `--force` compiles it anew.")
        return
    built = build_engine(force=force, say=lambda text: click.echo(text, err=True))
    if no_install:
        click.echo(str(built.wheel))
        return
    install_engine(built.wheel)
    origin = "compiled" if built.fresh else "from the cache"
    click.echo(f"Installed the engine ({origin}) for {', '.join(engine_info().usable)}.")


def _is_installed(key: str) -> bool:
    from hvtrain.engine.info import installed_record

    return (installed_record() or {}).get("key") == key


@engine.command()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def info(as_json: bool) -> None:
    """Show the installed engine: whether it is hvtrain's, its edits, and what it was built for.

    Exit code 3 when no installed framework can use it.
    """
    from hvtrain.engine.edits import EDITS
    from hvtrain.engine.info import engine_info
    from hvtrain.errors import ExitCode

    found = engine_info()
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=2))
    else:
        why = {edit.name: edit.why for edit in reversed(EDITS)}
        origin = "" if found.ours else "  (not built by hvtrain)"
        click.echo(f"Horovod    {found.version + origin if found.installed else 'not installed'}")
        for name in sorted({*found.built_for, *found.present}):
            click.echo(f"{name:<10} installed: {found.present.get(name, 'no')}, "
                       f"engine built for: {found.built_for.get(name, 'no')}")
        for name in found.edits:
            click.echo(f"edit       {name:<15} {why.get(name, '')}".rstrip())
        for problem in found.problems:
            click.echo(problem)
        if found.remedy:
            click.echo(f"Mend it with: {found.remedy}")
    if not found.usable:
        raise SystemExit(int(ExitCode.ENVIRONMENT))
