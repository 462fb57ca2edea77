"""``hvtrain agent``."""

from __future__ import annotations

import click


@click.command()
@click.option("--coordinator", required=True, metavar="HOST:PORT",
              help="Where the job's coordinator listens; hvtrain run says it. [HOST]:PORT for IPv6.")
@click.option("--slots", metavar="N", default="auto", show_default=True,
              help="Workers that this host is good for. auto: one for each GPU that a worker needs, without GPUs 1.")
@click.option("--token-file", type=click.Path(dir_okay=False), metavar="FILE",
              help="File with the job's token. Left out: $HVTRAIN_TOKEN, or it is asked for.")
@click.option("--name", default="", metavar="NAME", help="Name of this agent; left out, it is given one.")
@click.option("--code", type=click.Path(exists=True, file_okay=False, resolve_path=True), metavar="DIRECTORY",
              help="The directory with the job's code, where it is not the same one as on the coordinator's host.")
@click.option("--wait", default="5m", show_default=True, metavar="TIME",
              help="How long to look for a coordinator that is not there, or not any more.")
def agent(coordinator: str, slots: str, token_file: str | None, name: str, code: str | None, wait: str) -> int:
    """Take part in a job with this machine: add its slots to a job that runs, or is about to.

    \b
      hvtrain run -np 6 --slots 2 config.yaml                           # there; says where it listens
      hvtrain agent --coordinator 10.0.0.1:4321 --token-file token      # here, on each other machine

    All else comes from the coordinator. The job's code must be here, under the same path or with --code, and so should its
    run directory. SIGTERM or Ctrl-C has this machine's workers leave at the next step; the job goes on without them.

    The exit code is the job's, and 0 if this agent left before its end.
    """
    import sys

    from hvtrain.control import process
    from hvtrain.control.client import Address
    from hvtrain.launch import joining, tokens
    from hvtrain.launch.noticefile import parse

    host, port = parse(coordinator, "--coordinator")
    helper = joining.Helper(_count(slots), name, code, _seconds(wait))
    process.set_name("hvtrain-agent")
    return joining.serve(Address(host, port, tokens.obtain(token_file), tls=None), helper,
                         lambda text: print(f"hvtrain agent: {text}", file=sys.stderr, flush=True))


def _count(text: str) -> int | None:
    from hvtrain.errors import UsageError

    if text == "auto":
        return None
    if not text.isdecimal() or not 0 < int(text) <= 4096:
        raise UsageError(f"--slots expects a number from 1 to 4096, or auto; got {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    from pydantic import TypeAdapter, ValidationError

    from hvtrain.config.units import Duration
    from hvtrain.errors import UsageError

    try:
        return TypeAdapter(Duration).validate_python(text).seconds
    except ValidationError as error:
        raise UsageError(f"--wait: {error.errors()[0]['msg']}") from None
