"""Starting the warm process, before anything else is known: importing a framework takes the longest.

Nothing but the standard library is imported here, so that the warm process runs while its starter still
imports, reads the job file and connects.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from typing import IO, Any, Sequence


KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_TOP_PAD_": str(64 << 20)}
"""Has glibc keep freed memory. Otherwise it maps every large gradient anew in each step, and the page faults cost
up to 40 % of backward (25 M-parameter MLP). What the user's environment says about these goes first."""


SHARE_CORES = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Has OpenMP's threads sleep while they wait for each other. The default spins, which beside anything else on
the same cores (another worker, Horovod's thread) made a step up to 20 times slower."""


SECRETS = ("HVTRAIN_TOKEN",)
"""Variables that no process below a launcher inherits: what user code starts would have them, too, and may print them."""


@dataclass
class WarmProcess:
    """A started warm process, our end of the socket pair to it, and the file with what importing a framework wrote."""

    process: subprocess.Popen
    pair: socket.socket
    noise: IO[bytes]

    def load(self, boot: dict[str, Any]) -> None:
        """Tell it what job it is for."""
        self.pair.sendall(json.dumps({"op": "load", "boot": boot}).encode() + b"\n")


def start(framework: str, inherit: Sequence[int] = ()) -> WarmProcess:
    """Start a warm process that begins by importing ``framework``, and inherits the descriptors ``inherit``."""
    ours, theirs = socket.socketpair()
    noise = tempfile.TemporaryFile()
    environment = {name: value for name, value in os.environ.items() if name not in SECRETS}
    # NumPy's OpenBLAS would start threads at import, and then forking would not be safe any more.
    environment["OPENBLAS_NUM_THREADS"] = "1"
    for name, value in {**KEEP_MEMORY, **SHARE_CORES}.items():
        environment.setdefault(name, value)
    process = subprocess.Popen(
        [sys.executable, "-m", "hvtrain.control.warm", str(theirs.fileno()), str(os.getpid()), framework,
         str(noise.fileno())],
        pass_fds=[theirs.fileno(), noise.fileno(), *inherit], env=environment, stdin=subprocess.DEVNULL,
        start_new_session=True)
    theirs.close()
    return WarmProcess(process, ours, noise)


def guess_framework(config_path: str, overrides: tuple[str, ...]) -> str:
    """Which framework a job file names, or a script is written for, by a look at its text. A wrong guess costs time,
    nothing else."""
    named = r"^\s*framework\s*[:=]\s*['\"]?(torch|keras|numpy)"
    text = "\n".join(overrides)
    if config_path.endswith(".py"):
        from hvtrain.control import script

        found = re.search(named, text, re.MULTILINE)
        return found.group(1) if found else script.framework(config_path)
    try:
        with open(config_path, encoding="utf-8", errors="replace") as file:
            text += "\n" + file.read(1 << 16)
    except OSError:
        pass
    found = re.search(named, text, re.MULTILINE)
    return found.group(1) if found else "torch"
