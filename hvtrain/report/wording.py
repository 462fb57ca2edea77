"""What a person reads of an event on the console: one short line, or nothing. events.jsonl has the whole of it."""

from __future__ import annotations

import re
from typing import Any, Callable, Mapping

MAX_REASON = 200
"""Characters of a loss's cause; an exception's message may be long."""

Values = Mapping[str, Any]


def line(event: str, step: int | None, values: Values) -> str:
    """The line for an event after ``step`` steps; empty if a person need not hear of it."""
    return _LINES[event](step, values) if event in _LINES else ""


def workers(count: int) -> str:
    return f"{count} worker{'' if count == 1 else 's'}"


def _resumed(step: int | None, values: Values) -> str:
    return f"resumed at step {step} from {values.get('path', '')}"


def _rollback(step: int | None, values: Values) -> str:
    again = f"{values['steps']:,} steps are taken again" if values["steps"] else "no step is taken again"
    return f"all workers were lost: going on from step {step}, {again} (from {_SOURCES[values['source']]})"


def _lost(step: int | None, values: Values) -> str:
    reason = values["reason"].split("\n", 1)[0].replace("the worker with rank", "rank", 1)
    reason = re.sub(r" \(if nobody killed it[^)]*\)", "", reason)  # said again should the job end by it
    reason = reason if len(reason) <= MAX_REASON else reason[:MAX_REASON] + " ..."
    return f"step {step}: {reason}{'; going on without waiting for it' if values['job_goes_on'] else ''}"


def _left_out(step: int | None, values: Values) -> str:
    again = ". Another worker is tried there later" if values["again"] else ""
    return f"warning: step {step}: {values['reason']}{again}"


def _round(step: int | None, values: Values) -> str:
    if values["reason"] != "loss" or "first_step" not in values["seconds"]:
        return ""
    train = "trains" if values["size"] == 1 else "train"
    return (f"step {step}: {workers(values['size'])} {train} again, {values['seconds']['first_step']:.2f} s after the "
            "loss was noticed")


def _resize(step: int | None, values: Values) -> str:
    return f"step {step}: from {values['old']} to {workers(values['new'])}"


def _timeline(step: int | None, values: Values) -> str:
    if "path" not in values:
        return f"log.timeline: {values['steps']} gave no timeline: {values['reason']}"
    cut = f" (cut short: {values['cut_short']})" if "cut_short" in values else ""
    return f"timeline of steps {values['steps']} in {values['path']}{cut}: open it in https://ui.perfetto.dev"


def _host(text: str) -> Callable[[int | None, Values], str]:
    """About a host; with what to do, where something is known."""
    def told(step: int | None, values: Values) -> str:
        remedy = f" ({values['remedy']})" if values.get("remedy") else ""
        return f"{values.get('host', '')}: {text.format(**values)}{remedy}"
    return told


_SOURCES = {"memory": "the snapshot in a host's memory", "checkpoint": "the last durable checkpoint",
            "start": "the beginning: there was neither a snapshot nor a checkpoint"}
_LINES: dict[str, Callable[[int | None, Values], str]] = {
    "resumed": _resumed, "rollback": _rollback, "worker_lost": _lost, "round": _round, "resize": _resize,
    "left_out": _left_out,
    "few_cores": lambda step, values: f"warning: {values.get('text', '')}",
    "start_method": lambda step, values: f"warning: {values.get('text', '')}",
    "stop_requested": lambda step, values: "stopping after a checkpoint; a second signal stops at once",
    "warm_restarted": lambda step, values: f"{values.get('text', '')}; it was started again",
    "timeline": _timeline,
    "host_trouble": _host("{text}; it is tried again"),
    "host_back": _host("reached again"),
    "host_found": _host("it is new among the hosts"),
    "host_left": _host("it is no longer among the hosts; its workers leave"),
    "discovery_failed": lambda step, values: f"warning: {values.get('text', '')}",
    "discovery_short": lambda step, values: f"warning: {values.get('text', '')}",
    "early_stop": lambda step, values: f"early stop: no improvement; step {step}",
}
