"""A process under horovodrun that starts over in place, and what it takes along.

When the coordinator is lost with its host, the other processes begin anew: for horovodrun each stays the process that
it was, and inside nothing of the former life is left but what is said here. Light: imported before anything else is.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, Mapping, NoReturn

from hvtrain.checkpoint.memory import SharedSnapshots

_LIFE, _WORKERS, _MEMORY, _UNREACHED = "HVTRAIN_LIFE", "HVTRAIN_WORKERS", "HVTRAIN_MEMORY", "HVTRAIN_UNREACHED"
_HYBRID = "HVTRAIN_HYBRID"


def life() -> int:
    """1 for a process as horovodrun has started it; one more each time that it has lost the coordinator."""
    return int(os.environ.get(_LIFE, "1"))


def first_size(stages: int = 1) -> int:
    """How many workers of so many slots the job was started with, as far as this process knows."""
    return int(os.environ.get(_WORKERS) or int(os.environ["HOROVOD_SIZE"]) // stages)


def hybrid() -> dict[str, Any] | None:
    """The job's ``hybrid`` section as it was settled in a former life; None if none was heard of."""
    return json.loads(os.environ.get(_HYBRID) or "null")


def unreached() -> bool:
    """Whether this process has started over because it could not reach the coordinator."""
    return os.environ.get(_UNREACHED) == "1"


def shared_memory() -> SharedSnapshots:
    """Memory for snapshots: with those of the former life, or new and empty. Raises EnvironmentNotReady."""
    inherited = os.environ.pop(_MEMORY, "")
    return SharedSnapshots.attach([int(fd) for fd in inherited.split(",")]) if inherited else SharedSnapshots.create()


def start_over(place: Mapping[str, str], *, workers: int | None, memory: SharedSnapshots | None,
               unreached: bool, hybrid: Mapping[str, Any] | None = None) -> NoReturn:
    """Begin anew with the same command.

    Args:
        place: environment variables that tell this process's place from now on.
        workers: how many workers the job was started with, None if that was never heard.
        memory: what the next life is to find again.
        unreached: the coordinator was never reached in this life.
        hybrid: the job's section of that name, as it was settled.
    """
    os.environ.update(place)
    os.environ[_LIFE] = str(life() + 1)
    os.environ[_UNREACHED] = "1" if unreached else "0"
    if workers is not None:
        os.environ[_WORKERS] = str(workers)
    if hybrid is not None:
        os.environ[_HYBRID] = json.dumps(hybrid)
    if memory is not None:
        for fd in memory.fds:
            os.set_inheritable(fd, True)
        os.environ[_MEMORY] = ",".join(map(str, memory.fds))
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
