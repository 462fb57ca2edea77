"""What workers and agents say, for the membership machine and for those who keep it."""

from __future__ import annotations

import logging

from hvtrain.control import events, messages
from hvtrain.control.causes import CERTAIN, ECHO, Cause
from hvtrain.control.chronicle import Chronicle, Observer
from hvtrain.control.roster import Worker

log = logging.getLogger(__name__)


def of_agent(name: str, worker: Worker | None, message: messages.Message, observer: Observer) -> events.Event | None:
    """What the machine is to be fed with, None for nothing. ``worker`` is the one that the message speaks of."""
    if isinstance(message, messages.Exited):
        if worker is not None and worker.agent == name:
            return events.WorkerExited(message.worker, message.code, message.signal)
        log.info("ignored: %s speaks of %r, which is not its worker, or not any more", name, message.worker)
    elif isinstance(message, messages.LoadFailed):
        return events.JobFailed(Cause(message.exit_code, message.reason, message.traceback, salvage=False))
    elif isinstance(message, messages.Notice):
        observer.event(message.event, text=message.text)
    elif isinstance(message, messages.StopAsked):
        leave = message.signal not in (2, 1)  # a person's Ctrl-C or hang-up means the job, SIGTERM this host
        return events.AgentLeaving(name) if leave else events.StopRequested(message.signal)
    elif isinstance(message, messages.Beat):
        return events.AgentBeat(name)
    return None


def of_worker(name: str, worker: Worker | None, message: messages.Message, chronicle: Chronicle,
              observer: Observer) -> events.Event | None:
    """What the machine is to be fed with, None for nothing. ``worker`` is None if it is not known any more."""
    if isinstance(message, messages.Beat):
        return events.WorkerBeat(name, message.step, message.ticks, message.waiting, message.slowest,
                                 message.stamp)
    if isinstance(message, messages.Report):
        chronicle.report(message)
    elif isinstance(message, messages.Ready):
        chronicle.ready(name, message)
        return events.WorkerReady(name, message.step, message.round, message.reason)
    elif isinstance(message, messages.Formed):
        chronicle.formed(name, message)
        return events.WorkerFormed(name, message.round, message.step)
    elif isinstance(message, messages.Stepped):
        chronicle.stepped(name, message)
    elif isinstance(message, messages.Leaving):
        return events.WorkerLeaving(name)
    elif isinstance(message, messages.Finished):
        observer.summary(message.summary)
        _saved(message.saved_step, observer)
        return events.WorkerEnded(name, None, stopped=message.stopped, left=message.left, step=message.step)
    elif isinstance(message, messages.Failed):
        _saved(message.saved_step, observer)
        rank = worker.rank if worker is not None else None
        cause = Cause(message.exit_code, f"rank {rank}: {message.reason}", message.traceback,
                      weight=ECHO if message.lost_peer else CERTAIN, step=message.step, rank=rank, kind="raised")
        return events.WorkerEnded(name, cause, step=message.step)
    return None


def _saved(step: int | None, observer: Observer) -> None:
    if step is not None:
        observer.event("checkpoint", step=step, text="saved by a survivor")
