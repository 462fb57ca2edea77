"""What a person sees while a job runs: plain lines, or a live progress bar on a terminal."""

from __future__ import annotations

import sys
from typing import Any, Mapping, Protocol


class Console(Protocol):
    def start(self, total: int) -> None:
        """Training of ``total`` steps begins."""

    def measured(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Show a measurement."""

    def say(self, text: str) -> None:
        """Show a line of text."""

    def close(self) -> None:
        """Nothing more will be shown."""


class SilentConsole:
    """Shows nothing: ``log.console: off``, and the agents other than the first under horovodrun."""

    def start(self, total: int) -> None: ...
    def measured(self, kind: str, step: int, values: Mapping[str, Any]) -> None: ...
    def say(self, text: str) -> None: ...
    def close(self) -> None: ...


class PlainConsole(SilentConsole):
    """One line per measurement, for files, pipes and CI."""

    _total = 0

    def start(self, total: int) -> None:
        self._total = total

    def measured(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        self.say(line(kind, step, self._total, values))

    def say(self, text: str) -> None:
        # In one piece: print() writes the line's end by itself when Python does not buffer (PYTHONUNBUFFERED, as in a
        # container), and then `podman logs` and other processes that write to the same pipe run lines together.
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()


class RichConsole(SilentConsole):
    """A progress bar with the latest figures, and lasting lines for evaluations and events above it."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(TextColumn("step"), MofNCompleteColumn(), BarColumn(bar_width=10),
                                  TimeRemainingColumn(), TextColumn("{task.fields[figures]}"), refresh_per_second=4)
        self._task: Any = None
        self._total = 0

    def start(self, total: int) -> None:
        self._total = total
        if self._task is None:
            self._progress.start()
            self._task = self._progress.add_task("train", total=total, figures="")

    def measured(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        if kind == "train" and self._task is not None:
            short = {name: values[name] for name in _SHORT if name in values}  # a terminal has 80 columns
            self._progress.update(self._task, completed=step, figures=figures(short))
        else:
            self.say(line(kind, step, self._total, values))

    def say(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self._progress.stop()


def choose(wanted: str) -> Console:
    """The console for ``log.console``: auto takes the progress bar on a terminal."""
    if wanted == "off":
        return SilentConsole()
    if wanted == "rich" or (wanted == "auto" and sys.stdout.isatty()):
        return RichConsole()
    return PlainConsole()


def line(kind: str, step: int, total: int, values: Mapping[str, Any]) -> str:
    """One measurement on one line."""
    head = "eval " if kind == "eval" else "step "
    return f"{head}{step:>{len(str(total))}}/{total}  {figures(values)}"


def figures(values: Mapping[str, Any]) -> str:
    """The scalars of a measurement, the usual ones first, each in its usual form."""
    rest = {name: value for name, value in values.items() if name not in ("time", "step", "kind")}
    parts = [form(rest.pop(name)) for name, form in _FORMS.items() if isinstance(rest.get(name), (int, float))]
    parts += [f"{name} {value:.4g}" for name, value in rest.items() if isinstance(value, (int, float))]
    return "  ".join(parts)


_SHORT = ("loss", "samples_per_s", "comm_share")
_FORMS = {
    "epoch": lambda v: f"epoch {v}",
    "loss": lambda v: f"loss {v:.4f}",
    "accuracy": lambda v: f"accuracy {v:.4f}",
    "lr": lambda v: f"lr {v:.2e}",
    "samples_per_s": lambda v: f"{v:,.0f} samples/s",
    "comm_share": lambda v: f"comm {v:.0%}",
    "world_size": lambda v: f"{v} worker{'' if v == 1 else 's'}",
}
