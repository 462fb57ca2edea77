"""``hvtrain plan``."""

from __future__ import annotations

import math

import click


class _Factor(click.FloatRange):
    """A number from 0.000001 to 1000000. click's own range lets nan pass."""

    def __init__(self) -> None:
        super().__init__(min=1e-6, max=1e6)

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = click.FLOAT.convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no factor; write a number, such as 2.5", param, ctx)
        return super().convert(number, param, ctx)


@click.command()
@click.argument("config", type=click.Path(exists=True, dir_okay=False))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--nodes", type=click.IntRange(min=1), default=1, show_default=True, metavar="N", help="Number of machines.")
@click.option("--devices", type=click.IntRange(min=1), metavar="N",
              help="Devices of each machine, as fast as the one that is measured here. Left out: this machine's GPUs, or the "
              "cores of its processor.")
@click.option("--memory", metavar="SIZE", help="Memory of a device, for instance 80GB. Left out: hybrid.memory, or what the "
              "GPUs here have; no limit on the processor.")
@click.option("--bandwidth", metavar="RATE", help="Of the network between the machines, each way, for instance 100Gbit or "
              "12.5GB. Left out: 10Gbit.")
@click.option("--link", metavar="RATE", help="Between the devices of a machine, for instance 300GB. Left out: 16GB (PCI "
              "Express), or 4GB for the cores of a processor.")
@click.option("--speed", type=_Factor(), default=1.0, show_default=True, metavar="X",
              help="How many times as fast the devices are as the one that is measured here.")
@click.option("--all", "every", is_flag=True, help="Show every shape that was compared, not only the best of each kind.")
@click.option("--fresh", is_flag=True, help="Measure the model even if the run has a measurement of it.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: measurement, all shapes, the recommended one.")
def plan(config: str, overrides: tuple[str, ...], nodes: int, devices: int | None, memory: str | None, bandwidth: str | None,
         link: str | None, speed: float, every: bool, fresh: bool, as_json: bool) -> None:
    """Compare ways to lay the job file CONFIG out over machines that need not be there.

    The model is measured here, in ten seconds or some more: the time of each layer, forward and backward, its parameters
    and activations, with small and large micro-batches; on a processor also with all threads, and while others compute,
    as stages and replicas do. From that the time of a step is predicted for data parallelism and for layers split into stages, over
    numbers of micro-batches, with recomputation and with gradient codecs; and the memory that each device needs. One
    shape is recommended, with the reason and the command that trains so. On a processor fewer replicas than cores are
    compared, too, which have several threads each.

    The measurement is kept in the run's directory (profile.json), and used by `hvtrain run` for what is auto in the
    job's hybrid section.

    \b
    Examples:
        hvtrain plan config.yaml
        hvtrain plan config.yaml --nodes 4 --devices 8 --memory 80GB --bandwidth 100Gbit
    """
    import json

    from hvtrain.hybrid import tables
    from hvtrain.launch import planning

    if config.endswith(".py"):
        raise click.BadParameter(f"{config} is a script; a plan takes a job file, whose task has the model that is measured",
                                 param_hint="CONFIG")
    wishes = planning.Wishes(nodes, devices, _memory(memory), _rate(bandwidth, "--bandwidth"), _rate(link, "--link"), speed)
    found = planning.draw_up(config, overrides, wishes, fresh=fresh, say=lambda words: click.echo(words, err=True))
    if as_json:
        click.echo(json.dumps({**tables.to_json(found.plan, found.measurement.speeds), "command": found.command,
                               "given": found.given}, indent=1))
        return
    given = f"{found.given}\n\n" if found.given else ""
    click.echo(f"{found.head}\n\n{tables.text(found.plan, every=every)}\n\n{given}train so with:  {found.command}")


def _memory(text: str | None) -> int | None:
    from hvtrain.config.units import Size

    try:
        return Size.parse(text).bytes if text is not None else None
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--memory") from None


def _rate(text: str | None, option: str) -> float | None:
    from hvtrain.errors import UsageError
    from hvtrain.hybrid.cluster import bytes_per_second

    try:
        rate = bytes_per_second(text) if text is not None else None
    except UsageError as error:
        raise click.BadParameter(str(error), param_hint=option) from None
    if rate is not None and not math.isfinite(rate):
        raise click.BadParameter(f"{text} is more than can be counted with", param_hint=option)
    return rate
