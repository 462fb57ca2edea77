"""How the tasks of mpirun and srun learn from the first one where the job's coordinator is: by a file that only this user
can read, in the run directory; or, where the hosts share no disk, by the environment.

::

    first task                                                   another task
      RUN/.coordinator (0600): launcher's job, address, token -->  same launcher's job? somebody there who knows the token?
      $HVTRAIN_COORDINATOR=HOST:PORT, $HVTRAIN_TOKEN  ---------->  the same two variables

A file that a killed job has left behind names another launcher's job, or nobody who listens.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from hvtrain.control.client import Address
from hvtrain.errors import UsageError
from hvtrain.launch import tokens

FILE = ".coordinator"
VARIABLE = "HVTRAIN_COORDINATOR"

CLOCKS_SECONDS = 5.0
"""So much the clock of the disk's host may be behind this one's."""

OLD_SECONDS = 60.0
"""Where the launcher gives its jobs no names: a file so much older than this process is another job's."""


class NoticeFile:
    """That of the run in ``run_dir``, for the launcher's job ``name``."""

    def __init__(self, run_dir: str | os.PathLike[str], name: str):
        self._path, self._name, self._since = Path(run_dir) / FILE, name, time.time()

    def write(self, address: Address) -> None:
        """Say where the coordinator is. Raises OSError."""
        tokens.keep(self._path, json.dumps({"job": self._name, "host": address.host, "port": address.port,
                                            "token": address.token, "tls": address.tls}))

    def write_end(self, exit_code: int) -> None:
        """Say that there will be no coordinator: the first task has failed with this exit code. Raises OSError."""
        tokens.keep(self._path, json.dumps({"job": self._name, "over": exit_code}))

    def read(self) -> Address | int | None:
        """Where the coordinator of this launcher's job is, as far as the file knows; or with what the first task failed."""
        try:
            if not self._name and self._path.stat().st_mtime < self._since - OLD_SECONDS:
                return None
            entry = json.loads(tokens.kept(self._path) or "null")
            if entry["job"] != self._name:
                return None
            if "over" in entry:  # not that of a former start under the same name, which the first task has yet to remove
                return int(entry["over"]) if self._path.stat().st_mtime >= self._since - CLOCKS_SECONDS else None
            return Address(str(entry["host"]), int(entry["port"]), str(entry["token"]), entry["tls"] is True)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def remove(self) -> None:
        """The job is over, or has not begun: whatever stands there is of no use any more."""
        self._path.unlink(missing_ok=True)

    @property
    def path(self) -> str:
        return str(self._path)


def of_environment(token: str | None) -> Address | None:
    """Where the coordinator is to be, if the environment says it; None else.

    Raises:
        UsageError: it is no address, or there is no ``token`` for it.
    """
    text = os.environ.get(VARIABLE)
    if text is None:
        return None
    if token is None:
        raise UsageError(f"${VARIABLE} says where the job's coordinator is ({text}), but nobody says the job's token. Set "
                         f"${tokens.VARIABLE} for all tasks as well, or launch.token_file")
    host, port = parse(text, f"${VARIABLE}")
    return Address(host, port, token, tls=None)


def parse(text: str, where: str) -> tuple[str, int]:
    """Host and port. Raises UsageError; ``where`` the text stands."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not host or (":" in host and not bracketed) or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(f"{where} expects HOST:PORT, such as 10.0.0.1:4321 or [fd00::1]:4321; got {text!r}")
    return host[1:-1] if bracketed else host, int(port)
