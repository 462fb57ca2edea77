"""Signs of life in files, for whoever looks after a container: ``hvtrain health``.

::

    coordinator, agent ---every SECONDS---> $HVTRAIN_HEALTH/coordinator, /agent <---read--- hvtrain health

Each sign says what its giver knows to be true at that moment, and holds for GOOD_SECONDS: a process that is gone, hangs
or has lost the coordinator gives none. Nothing is written unless HVTRAIN_HEALTH names a directory.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

log = logging.getLogger(__name__)

VARIABLE = "HVTRAIN_HEALTH"

SECONDS = 2.0
"""Between two signs."""

GOOD_SECONDS = 15.0
"""An older sign says that something is wrong. A busy machine may hold a process up for seconds."""


@dataclass(frozen=True)
class Sign:
    """What one process has said of itself: ``role`` "coordinator" or "agent", ``age`` in seconds."""

    role: str
    text: str
    age: float

    @property
    def good(self) -> bool:
        return 0 <= self.age <= GOOD_SECONDS


class Signs:
    """Gives the signs of one process, if the environment asks for them."""

    def __init__(self, role: str):
        directory = os.environ.get(VARIABLE)
        self._path = Path(directory) / role if directory else None

    def give(self, text: str) -> None:
        """Say ``text``. A directory that cannot be written is complained of once."""
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            new = self._path.with_suffix(f".{os.getpid()}")
            new.write_text(json.dumps({"text": text, "at": _now()}), encoding="utf-8")
            os.replace(new, self._path)
        except OSError as error:
            log.warning("no sign of life can be given to `hvtrain health` (%s=%s): %s", VARIABLE, self._path.parent,
                        error)
            self._path = None

    async def keep(self, text: Callable[[], str]) -> None:
        """Give signs until this is cancelled; a loop that hangs gives none."""
        while self._path is not None:
            self.give(text())
            await asyncio.sleep(SECONDS)

    def end(self) -> None:
        """There is nothing more to say: the process ends in order."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def read(directory: Path) -> list[Sign]:
    """The signs that lie in ``directory``, one for each process that has given any."""
    found = []
    for path in sorted(directory.glob("*")) if directory.is_dir() else []:
        if path.suffix:
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            found.append(Sign(path.name, str(content["text"]), _now() - float(content["at"])))
        except (OSError, ValueError, KeyError, TypeError):
            found.append(Sign(path.name, "its sign of life cannot be read", float("inf")))
    return found


def _now() -> float:
    """Seconds on a clock that all processes of the machine share, that counts sleep, and that nobody sets."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
