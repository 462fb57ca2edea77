"""env.json: what the run ran on, so that a result can be explained later."""

from __future__ import annotations

import os
import platform
import socket
import sys
from importlib import metadata
from typing import Any, Mapping

_PACKAGES = ("torch", "tensorflow", "tensorflow-cpu", "keras", "horovod", "numpy", "safetensors", "pydantic", "aiohttp")


def describe(command: str, workers: int, code: str = "", given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Versions, machine and command of a run, JSON-able. ``code`` is where its task was found, ``given`` what a script's job
    was told explicitly. Imports none of the packages."""
    from hvtrain import __version__

    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {"hvtrain": __version__, "python": platform.python_version(), "platform": platform.platform(),
            "packages": packages, "host": socket.gethostname(), "cpus": os.cpu_count(), "workers": workers,
            "command": command, "code": code, "cwd": os.getcwd(), "given": given, "executable": sys.executable}
