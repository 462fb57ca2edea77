"""What a host says of itself before it takes part: read there, judged where the job is launched (:mod:`.judging`)."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import Any, Iterator, Mapping

from hvtrain.control import versions
from hvtrain.engine.machine import cores, existing_parent, memory_free
from hvtrain.launch import network

MOST_FILES = 2000
"""Python files of a job's directory that are compared; a directory with more holds other things too."""

DIGITS = 12


def examine(question: Mapping[str, Any]) -> dict[str, Any]:
    """The report, JSON-able.

    Args:
        question: ``module_dir`` and ``run_dir`` (the job's), ``config`` (its file), ``mark`` (a file that the launcher has
            made in its run directory).
    """
    return {"machine": machine(), "python": sys.executable, "versions": versions.own(), "cores": cores(),
            "memory": memory_free(), "addresses": network.addresses(),
            "code": code(question["module_dir"], question["run_dir"]), "config": digest(question["config"]),
            "sees_run": os.path.exists(question["mark"]),
            "writes_run": os.access(existing_parent(Path(question["run_dir"])), os.W_OK)}


def code(directory: str, run_dir: str) -> dict[str, str] | None:
    """The Python files below ``directory`` with a digest each; None if it is not there.

    Environments, hidden directories and runs are left out.
    """
    if not os.path.isdir(directory):
        return None
    found = {}
    for path in _python_files(directory, os.path.realpath(run_dir)):
        if len(found) == MOST_FILES:
            break
        found[os.path.relpath(path, directory)] = digest(path) or "unreadable"
    return found


def digest(path: str) -> str | None:
    """A digest of a file's content; None if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()[:DIGITS]
    except OSError:
        return None


def machine() -> str:
    """Equal on one machine by whatever name it was reached: its boot, and its network."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.stat('/proc/self/ns/net').st_ino}"
    except OSError:
        return f"{os.uname().nodename}"


def _python_files(directory: str, run_dir: str) -> Iterator[str]:
    for here, directories, files in os.walk(directory):
        directories[:] = sorted(
            name for name in directories
            if not name.startswith((".", "__")) and name not in ("site-packages", "node_modules")
            and not os.path.exists(os.path.join(here, name, "pyvenv.cfg"))
            and not os.path.exists(os.path.join(here, name, "events.jsonl"))
            and os.path.realpath(os.path.join(here, name)) != run_dir)
        yield from (os.path.join(here, name) for name in sorted(files) if name.endswith(".py"))
