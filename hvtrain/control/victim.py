"""A worker as a fault plan sees it: where it stands, and what it can be made to suffer."""

from __future__ import annotations

from pathlib import Path

from hvtrain import probe
from hvtrain.chaos.injector import Injector
from hvtrain.chaos.plan import Plan
from hvtrain.control.boot import Boot
from hvtrain.control.remote import RemoteSession


class WorkerVictim:
    """Fulfils :class:`hvtrain.chaos.injector.Victim`. ``rank`` and ``round`` are what the worker was started for."""

    def __init__(self, session: RemoteSession, rank: int, round: int, size: int):
        self._session, self._rank, self._round, self._size = session, rank, round, size

    @property
    def rank(self) -> int:
        return self._session.rank if self._session.round else self._rank

    @property
    def size(self) -> int:
        return self._session.size if self._session.round else self._size

    @property
    def step(self) -> int:
        return self._session.step

    @property
    def round(self) -> int:
        return self._session.round or self._round

    def cut(self) -> None:
        self._session.cut()

    def leave(self) -> None:
        self._session.leave()


def take_faults(boot: Boot, session: RemoteSession, rank: int, round: int) -> None:
    """Have this worker suffer what the job's fault plan holds for it."""
    victim = WorkerVictim(session, rank, round, boot.job.launch.workers or 1)
    probe.listen(Injector(Plan.model_validate(boot.faults), Path(boot.run_dir), victim))
