"""The Python API: ``Trainer(job, task).fit()``."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager
from typing import Any, Iterator, Mapping, Sequence

from hvtrain import hosting
from hvtrain.callbacks import Callback
from hvtrain.config import Job, layers
from hvtrain.engine import rounds
from hvtrain.engine import world as worlds
from hvtrain.engine.machine import cores
from hvtrain.errors import ExitCode, UsageError
from hvtrain.hybrid import openings
from hvtrain.loop import Loop, Outcome
from hvtrain.report.reporter import Reporter
from hvtrain.session import QuietSession
from hvtrain.target import checked
from hvtrain.task import Task


class Trainer:
    """Trains a task in this process: alone, or as one rank where ``horovodrun`` has started several.

    In a script that ``hvtrain run train.py`` runs it trains as the worker there, with everything that this brings; only
    such jobs survive losses of workers. Example::

        job = Job.model_validate({"task": {"target": "script:task"}, "train": {"epochs": 2}})
        outcome = Trainer(job, MyTask()).fit()

    What ``job.hybrid`` leaves open is settled as ``hvtrain run`` does, save for what takes a measurement of the model.

    Args:
        job: the job; ``job.task`` is not looked at, because ``task`` is here already.
        task: the task itself.
        callbacks: further callbacks beside the task's own.

    Raises:
        UserCodeError: ``task`` lacks what a task must have.
    """

    def __init__(self, job: Job, task: Task, callbacks: Sequence[Callback] = ()):
        self._job, self._task, self._callbacks = job, checked(task, type(task).__name__), callbacks

    def fit(self) -> Outcome:
        """Train to the end and return where that is.

        Ctrl-C and SIGTERM stop after a checkpoint; ``stopped`` of the result tells. A second Ctrl-C does not wait.

        Raises:
            UsageError: the job is for another number of processes, or ``hybrid`` leaves open what has to be measured.
            Diverged, UserCodeError, CheckpointError, RoundBroken, and whatever the task raises.
        """
        host = hosting.current()
        if host is not None:  # the script is one of `hvtrain run`
            return host.train(lambda job: self._task, None, given=layers.explicit(self._job), defaults={},
                              callbacks=self._callbacks)
        place = place_from_environment(self._job)
        self._job = openings.without_measuring(self._job, place.size)
        wanted = self._job.launch.workers
        if wanted is not None and wanted != place.size:
            raise UsageError(f"launch.workers is {wanted}, but this script runs as {place.size} process"
                             f"{'es' if place.size > 1 else ''}. Start it with: horovodrun -np {wanted} python SCRIPT")
        session = _LocalSession(self._job, place)
        threads = self._job.launch.threads
        count = threads if isinstance(threads, int) else max(1, cores() // place.local_size)
        loop = Loop(self._job, self._task, session, threads=count, local_rank=place.local_rank,
                    callbacks=self._callbacks)
        try:
            with session.signals():
                outcome = loop.run()
            session.end(outcome)
            return outcome
        except BaseException as error:
            session.fail(error, loop.step)
            raise
        finally:
            session.leave()


def place_from_environment(job: Job) -> worlds.Place:
    """This process's place as ``horovodrun`` has put it into the environment; alone if it has not."""
    env = os.environ

    def number(name: str, default: int) -> int:
        return int(env.get(f"HOROVOD_{name}", default))

    return worlds.Place(
        rank=number("RANK", 0), size=number("SIZE", 1), local_rank=number("LOCAL_RANK", 0),
        local_size=number("LOCAL_SIZE", 1), cross_rank=number("CROSS_RANK", 0), cross_size=number("CROSS_SIZE", 1),
        host=env.get("HOROVOD_HOSTNAME", "localhost"), rendezvous_host=env.get("HOROVOD_GLOO_RENDEZVOUS_ADDR", ""),
        rendezvous_port=number("GLOO_RENDEZVOUS_PORT", 0), interface=env.get("HOROVOD_GLOO_IFACE", ""),
        timeout=job.comm.timeout.seconds, cycle_ms=job.comm.cycle_ms, shared_memory=job.comm.shared_memory)


class _LocalSession(QuietSession):
    """Reports straight into the run directory, from rank 0."""

    def __init__(self, job: Job, place: worlds.Place):
        self._job, self._place = job, place
        self._world: worlds.World | None = None
        self._stop = 0
        self._reporter = Reporter(job, workers=place.size, command="hvtrain.Trainer") if place.rank == 0 else None

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Within this context SIGINT and SIGTERM ask for a stop; in other threads than the main one they cannot."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def on_signal(number: int, frame: Any) -> None:
            if self._stop:
                raise KeyboardInterrupt
            self._stop = number

        former = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def stop_signal(self) -> int:
        return self._stop

    def enter(self, outline: Mapping[str, Any], step: int, reason: str) -> worlds.World:
        if self._reporter is not None:
            self._reporter.open()
            self._reporter.outline(dict(outline))
        self._world = rounds.form(self._place, self._job.framework)
        return self._world

    def report(self, kind: str, step: int, epoch: int, values: Mapping[str, float]) -> None:
        if self._reporter is not None:
            self._reporter.measured(kind, step, epoch, values)

    def event(self, name: str, step: int, **values: Any) -> None:
        if self._reporter is not None:
            self._reporter.event(name, step=step, **values)

    def end(self, outcome: Outcome) -> None:
        if self._reporter is not None:
            self._reporter.summary(outcome.summary)
            if outcome.stopped:
                code = ExitCode.INTERRUPTED if self._stop == signal.SIGINT else ExitCode.TERMINATED
                self._reporter.close(state="stopped", exit_code=int(code), reason="stopped by a signal after a checkpoint",
                                     resumable=self._job.checkpoint.every is not None)
            else:
                self._reporter.close(state="done", exit_code=0, reason="done")

    def fail(self, error: BaseException, step: int) -> None:
        if self._reporter is not None and self._reporter.is_open:
            from hvtrain import failure

            account = failure.account(error)
            self._reporter.close(state="failed", exit_code=account.exit_code, reason=account.reason)

    def leave(self) -> None:
        if self._world is not None:
            self._world.close()
