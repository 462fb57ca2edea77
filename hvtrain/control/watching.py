"""What the machine waits for, until when, and what happens then. No state waits without a deadline."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Iterator

from hvtrain.control import assembling, causes, ending, losing
from hvtrain.control.events import Action, KillWorker
from hvtrain.control.roster import FORM_ATTEMPTS, Phase, Stage, State, Status, Worker

Outcome = tuple[State, tuple[Action, ...]]


@dataclass(frozen=True)
class Wait:
    """``what`` happens at time ``at`` unless ``name`` (an agent, a worker, or nobody) is faster."""

    at: float
    what: str
    name: str = ""


def waits(state: State) -> Iterator[Wait]:
    """Everything that is waited for in ``state``; never empty before the job is over."""
    limits = state.limits
    if state.phase is Phase.GATHERING:
        yield Wait(state.since + limits.start, "slots")
    elif state.phase is Phase.ENDING:
        yield Wait(state.since + (2 * limits.stop if state.killed else limits.stop), "end")
        if not state.dismissed:
            yield Wait(state.since + limits.replace, "end")
    else:
        for name, agent in state.agents.items():
            yield Wait(agent.last_beat + limits.heartbeat, "agent", name)
        for name, worker in state.workers.items():
            yield from _of_worker(state, name, worker)
        yield from _of_round(state)
        if state.stop_signal:
            yield Wait(state.since + limits.stop, "stop")
        if state.hungry_since is not None:
            yield Wait(state.hungry_since + limits.start, "workers")


def _of_worker(state: State, name: str, worker: Worker) -> Iterator[Wait]:
    if worker.stage is Stage.STARTING:
        yield Wait(worker.since + state.limits.start, "start", name)
    elif worker.stage is Stage.LEAVING:
        yield Wait(worker.since + state.limits.stop, "leave", name)
    elif worker.stage is Stage.DOOMED:
        yield Wait(worker.since + state.limits.stop, "death", name)
    else:
        yield Wait(worker.last_beat + state.limits.heartbeat, "beat", name)
        idle = worker.stage is Stage.SEATED and worker.waiting
        training = state.round.status in (Status.ACTIVE, Status.PAUSING)
        if worker.stage is Stage.RETURNING or (worker.stage is Stage.SEATED and training and not idle):
            yield Wait(max(worker.since, worker.ticked) + state.step_limit, "step", name)


def _of_round(state: State) -> Iterator[Wait]:
    current = state.round
    if current.status is Status.FORMING:
        yield Wait(current.since + state.limits.form, "form")
    elif assembling.waits_for_replacement(state):
        yield Wait(current.broken_at + state.limits.replace, "replacement")
    leave = assembling.leave_at(state)
    if leave is not None and current.status is Status.ACTIVE and not state.stop_signal:
        yield Wait(leave, "leave")
    members = [w for _, w in state.at(Stage.SEATED)]
    if members and current.status in (Status.ACTIVE, Status.PAUSING) and all(w.waiting for w in members):
        # Twice the limit: a rank that has just come into its wait may be about to get on.
        yield Wait(max(w.ticked for w in members) + 2 * state.step_limit, "all waiting")


def overdue(state: State, wait: Wait, now: float) -> Outcome:
    """What follows when ``wait`` has ended without what was waited for."""
    limits = state.limits
    worker = state.workers.get(wait.name)
    if wait.what == "slots":
        found = sum(agent.slots for agent in state.agents.values())
        if limits.elastic and found >= limits.min_workers:
            return replace(state, phase=Phase.OPEN, since=now), ()  # go on with those that are there
        return ending.begin(state, causes.too_few_slots(found, state.target, limits.start), now), ()
    if wait.what == "agent":
        return losing.lose_agent(state, wait.name, now) if wait.name in state.agents else (state, ())
    if wait.what == "stop":
        return ending.begin(state, causes.stopped(state.stop_signal, saved=False), now), ()
    if wait.what == "workers":
        found = sum(1 for _ in state.at(Stage.READY))
        return ending.begin(state, causes.too_few_workers(found, limits.min_workers, limits.start), now), ()
    if wait.what in ("form", "all waiting") and state.round.status in (Status.FORMING, Status.ACTIVE, Status.PAUSING):
        return _nobody_gets_on(state, wait.what, now)
    if worker is None:
        return state, ()
    return _of_late_worker(state, wait, worker, now)


def _of_late_worker(state: State, wait: Wait, worker: Worker, now: float) -> Outcome:
    limits, name = state.limits, wait.name
    if wait.what == "start" and worker.stage is Stage.STARTING:
        return losing.lose(state, name, causes.not_ready([worker.rank], limits.start), now, own_fault=True, kill=True,
                           stacks=True)
    if wait.what == "leave" and worker.stage is Stage.LEAVING:
        return state.worker(name, stage=Stage.DOOMED, since=now), (KillWorker(name, worker.agent, stacks=True),)
    if wait.what == "death":  # SIGKILL takes its time (a process in the kernel's hands); ask again
        return state.worker(name, since=now), (KillWorker(name, worker.agent),)
    if wait.what == "beat" and worker.alive:
        cause = causes.silent(worker.rank, limits.heartbeat, worker.step)
        return losing.lose(state, name, cause, now, kill=True, stacks=True)
    if wait.what == "step" and worker.taking_part:
        cause = causes.stuck(worker.rank, now - max(worker.since, worker.ticked), worker.step)
        return losing.lose(state, name, cause, now, kill=True, stacks=True)
    return state, ()


def _nobody_gets_on(state: State, what: str, now: float) -> Outcome:
    """Everybody waits for the others: no single one is to blame, so all try again."""
    if what == "form":
        state = replace(state, unformed=state.unformed + 1)
        if state.unformed >= FORM_ATTEMPTS:
            return ending.begin(state, causes.unformed(state.unformed), now), ()
        return losing.break_round(state, "the round could not be formed in time", now, failure=None)
    cause = causes.no_progress(2 * state.step_limit, state.progress)
    if not state.limits.elastic:
        return ending.begin(state, cause, now), ()
    return losing.break_round(state, cause.reason, now, failure=cause)


