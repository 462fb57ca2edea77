"""Where a worker trains: its session, its host's memory, its part of the machine; also for the script that it hosts."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

from hvtrain import adapters, hosting
from hvtrain.callbacks import Callback
from hvtrain.checkpoint.memory import SharedSnapshots
from hvtrain.config import Job, dump, layers
from hvtrain.control import script
from hvtrain.control.boot import Boot
from hvtrain.control.remote import RemoteSession
from hvtrain.errors import UsageError, UserCodeError
from hvtrain.loop import Loop, Outcome
from hvtrain.report.rundir import RunDirectory, write_atomically
from hvtrain.task import Task

log = logging.getLogger(__name__)

WHOLE = ("run", "launch", "elastic")
"""Sections that belong to the job as a whole: it runs already when a script says something about them."""


class Workplace:
    """Trains one task as one worker. Fulfils :class:`hvtrain.hosting.Host`.

    Args:
        worker: its name.
        rank: the one that it was started for.
        local_rank: which of the host's devices to use.
    """

    def __init__(self, boot: Boot, session: RemoteSession, worker: str, rank: int, local_rank: int):
        self._boot, self._session, self._worker = boot, session, worker
        self._rank, self._local_rank = rank, local_rank
        self._loop: Loop | None = None
        self._outcome: Outcome | None = None
        self._error: BaseException | None = None

    @property
    def rank(self) -> int:
        """This worker's rank in its round; before the first, the one that it was started for."""
        return self._session.rank if self._session.round else self._rank

    @property
    def step(self) -> int:
        """Committed steps so far."""
        return self._loop.step if self._loop is not None else 0

    @property
    def salvaged_step(self) -> int | None:
        """See :attr:`Loop.salvaged_step`."""
        return self._loop.salvaged_step if self._loop is not None else None

    def work(self, job: Job, task: Task, callbacks: Sequence[Callback] = ()) -> Outcome:
        """Train ``task``; see :meth:`Loop.run`."""
        boot = self._boot
        memory = SharedSnapshots.attach(boot.snapshots) if boot.snapshots else None
        self._loop = Loop(job, task, self._session, threads=boot.threads, local_rank=self._local_rank,
                          callbacks=callbacks, memory=memory, worker=self._worker, start=boot.start)
        return self._loop.run()

    def run_script(self) -> Outcome:
        """Run the job's script, which trains by calling ``fit()``.

        Raises:
            UsageError: it does not call ``fit()``.
            and whatever the script raises.
        """
        boot = self._boot
        assert boot.job.task.script is not None
        adapters.prepare(boot.job.framework, seed=boot.job.run.seed, threads=boot.threads, local_rank=self._local_rank)
        hosting.be(self)
        try:
            script.run(Path(boot.module_dir) / os.path.basename(boot.job.task.script))
        except hosting.Over:
            pass
        except SystemExit as end:
            raise self._error or UserCodeError(f"the script ended by sys.exit({end.code!r})") from None
        finally:
            hosting.be(None)
        if self._error is not None:  # the script has gone on in spite of it
            raise self._error
        if self._outcome is None:
            raise UsageError(f"the script {boot.job.task.script} has ended without training: it must call "
                             "hvtrain.keras.fit, hvtrain.torch.fit or hvtrain.Trainer(...).fit() once. To run it "
                             f"without training: python {boot.job.task.script}")
        return self._outcome

    def train(self, make: Callable[[Job], Task], framework: str | None, *, given: Mapping[str, Any],
              defaults: Mapping[str, Any], callbacks: Sequence[Callback] = ()) -> Outcome:
        """See :class:`hvtrain.hosting.Host`."""
        try:
            self._outcome = self._train(make, framework, given, defaults, callbacks)
        except BaseException as error:
            self._error = self._error or error
            raise
        if self._outcome.stopped:
            raise hosting.Over(0)
        return self._outcome

    def _train(self, make: Callable[[Job], Task], framework: str | None, given: Mapping[str, Any],
               defaults: Mapping[str, Any], callbacks: Sequence[Callback]) -> Outcome:
        boot = self._boot
        if self._loop is not None:
            raise UsageError("fit() was called a second time, but hvtrain run trains once per script. Train the rest "
                             "by a script of its own, or run this one by: python SCRIPT")
        if framework not in (None, boot.job.framework):
            raise UsageError(f"the script trains with {framework}, but its job was started with framework: "
                             f"{boot.job.framework}. Give framework={framework} on the command line")
        job = self._settled(given, defaults)
        if self._rank == 0:  # until now it held what the command said
            text = f"# The job as its command and the script {job.task.script} say it\n{dump(job)}"
            write_atomically(RunDirectory(boot.run_dir).config, text)
        outcome = self.work(job, make(job), callbacks)
        self._session.retire()
        return outcome

    def _settled(self, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> Job:
        job, told = self._boot.job.model_dump(mode="json"), self._boot.given
        idle = sorted(section for section in given if section in WHOLE)
        if idle:
            log.warning("what the script says under %s holds when it runs alone; hvtrain run takes it from its command "
                        "line and --config", " and ".join(idle))
        fixed = {key: job[key] for key in (*WHOLE, "framework", "task", "version")}
        fixed["comm"] = {key: job["comm"][key] for key in ("timeout", "cycle_ms", "shared_memory")}  # the rounds'
        return layers.settle([defaults, told.all, given, told.over], fixed, "what the script says")
