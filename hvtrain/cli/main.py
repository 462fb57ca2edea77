"""The ``hvtrain`` command. Sub-commands are imported when they are called, so that help is instant."""

from __future__ import annotations

import importlib
import logging
import sys

import click

from hvtrain import __version__
from hvtrain.errors import ExitCode, HvtrainError, UserCodeError

COMMANDS = {  # name: (module, attribute, short help)
    "run": ("hvtrain.cli.run", "run", "Train what a job file describes, or what a script trains."),
    "agent": ("hvtrain.cli.agent", "agent", "Take part in a job with this machine's slots."),
    "plan": ("hvtrain.cli.plan", "plan", "Compare data parallelism and stages, from a measurement of the model."),
    "ps": ("hvtrain.cli.ps", "ps", "List the agents and workers of a running job."),
    "health": ("hvtrain.cli.health", "health", "Say whether the job's process in this container is well."),
    "scale": ("hvtrain.cli.scale", "scale", "Change the number of workers of a running job."),
    "config": ("hvtrain.cli.config", "config", "Show, check or describe job files."),
    "ckpt": ("hvtrain.cli.ckpt", "ckpt", "List, verify, prune, export or compare checkpoints."),
    "chaos": ("hvtrain.cli.chaos", "chaos", "Check fault plans, and tell what has struck a run."),
    "drill": ("hvtrain.cli.drill", "drill", "Prove that a job survives faults: run it small, with and without."),
    "engine": ("hvtrain.cli.engine", "engine", "Build Horovod for the installed frameworks."),
    "doctor": ("hvtrain.cli.doctor", "doctor", "Say whether training can work here, and what to do if not."),
}

EPILOG = """\b
Exit codes:
    0  done                               5  the loss is not finite
    1  the task's own code failed       130  stopped by Ctrl-C
    2  bad command line or job file     143  stopped by SIGTERM, after a checkpoint
    3  the environment is not usable    144  workers were lost; run again to go on
    4  checkpoint missing or damaged    145  a worker stopped answering; run again
"""


class LazyGroup(click.Group):
    """A group that knows its commands' names and help without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[name]
        return getattr(importlib.import_module(module), attribute)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hvtrain")
def cli() -> None:
    """Fault-tolerant training on Horovod, for PyTorch and Keras 3.

    Start with: hvtrain run examples/mnist/config.yaml
    """


def main() -> None:
    """Entry point: runs the command line and turns errors into messages and exit codes."""
    logging.basicConfig(level=logging.WARNING, format="hvtrain: %(message)s")
    try:
        sys.exit(cli.main(standalone_mode=False) or 0)
    except click.exceptions.Abort:
        sys.exit(int(ExitCode.INTERRUPTED))
    except click.ClickException as error:
        error.show()
        sys.exit(int(ExitCode.USAGE))
    except HvtrainError as error:
        print(f"hvtrain: {error}", file=sys.stderr)
        if isinstance(error, UserCodeError) and error.traceback_text:
            print(error.traceback_text, file=sys.stderr)
        sys.exit(int(error.exit_code))
    except KeyboardInterrupt:
        sys.exit(int(ExitCode.INTERRUPTED))


if __name__ == "__main__":
    main()
