"""A script in a worker of ``hvtrain run train.py``: whose place its ``fit()`` trains in.

::

    hvtrain run train.py --> worker: be(host) --> the script --> fit() --> current().train(...): as this worker
    python train.py                               the script --> fit() --> no host: alone, or as a rank of horovodrun

Everything before and after ``fit()`` runs in every worker.
"""

from __future__ import annotations

import os
from typing import Any, Callable, Mapping, Protocol, Sequence

from hvtrain.callbacks import Callback
from hvtrain.config import Job
from hvtrain.task import Task


class Over(SystemExit):
    """The script is to end here: the job was stopped after a checkpoint, or this worker is not needed any more.

    A SystemExit, so that ``finally`` blocks run and ``except Exception`` does not hold it up.
    """


class Host(Protocol):
    rank: int

    def train(self, make: Callable[[Job], Task], framework: str | None, *, given: Mapping[str, Any],
              defaults: Mapping[str, Any], callbacks: Sequence[Callback] = ()) -> Any:
        """Train the task that ``make`` makes for the settled job; returns the loop's Outcome, once all have trained.

        Args:
            framework: what the task is written for; None if its author does not say.
            given: what the script says about the job. The command line goes before it, the command's job file does not.
            defaults: what holds where neither says anything.

        Raises:
            Over: the script is to end.
            UsageError: a script may train once.
        """


_host: Host | None = None


def be(host: Host | None) -> None:
    """Have ``fit()`` train by ``host`` from now on; None ends that."""
    global _host
    _host = host


def is_first() -> bool:
    """Whether this process is the job's rank 0, or alone: the one to write a script's files. Ask after ``fit()``."""
    return _host.rank == 0 if _host is not None else int(os.environ.get("HOROVOD_RANK", "0")) == 0


def current() -> Host | None:
    """Who hosts this process's script; None if nobody does."""
    return _host
