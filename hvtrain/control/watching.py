"""What the machine waits for, until when, and what happens then. No state waits without a deadline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterator

from hvtrain.control import assembling, causes, ending, losing
from hvtrain.control.events import Action, KillWorker, PauseRound
from hvtrain.control.roster import FIRST_REST, Phase, Stage, State, Status, Worker, replace

Outcome = tuple[State, tuple[Action, ...]]


@dataclass(frozen=True)
class Wait:
    """``what`` happens at time ``at`` unless ``name`` (an agent, a worker, or nobody) is faster. Began at ``since``."""

    at: float
    what: str
    name: str = ""
    since: float = 0.0


# What is waited for -----------------------------------------------------------------------------------
def deadline(state: State) -> float:
    """When to look again at the latest.

    The waits for the job as a whole are few, and looked at now. Those for each worker and each agent are not gone
    through with every event (a thousand workers' signs of life are a thousand events a second): ``state.due`` is a time
    before which none of them ends. To look too early costs little and changes nothing.
    """
    due = state.due if state.due is not None and state.phase is Phase.OPEN else _next_of_people(state)
    return min([due, *[wait.at for wait in _of_job(state)]])


def looked(state: State) -> State:
    """After a look at all waits: ``due`` is exact."""
    return replace(state, due=_next_of_people(state))


def moved_on(state: State, now: float) -> State:
    """After an event at ``now``: no wait that it can have begun ends sooner than the shortest of them all."""
    if state.phase is not Phase.OPEN:
        return state
    limits = state.limits
    soonest = now + min(limits.start, limits.stop, limits.heartbeat, state.step_limit, FIRST_REST)
    return state if state.due is not None and state.due <= soonest else replace(state, due=soonest)


def waits(state: State) -> Iterator[Wait]:
    """Everything that is waited for in ``state``; never empty before the job is over."""
    yield from _of_people(state)
    yield from _of_job(state)


def _next_of_people(state: State) -> float:
    return min((wait.at for wait in _of_people(state)), default=float("inf"))


def _of_people(state: State) -> Iterator[Wait]:
    if state.phase is not Phase.OPEN:
        return
    for name, agent in state.agents.items():
        yield Wait(agent.last_beat + state.limits.heartbeat, "agent", name)
        if agent.rest_until:
            yield Wait(agent.rest_until, "rest", name)
    for name, worker in state.workers.items():
        yield from _of_worker(state, name, worker)
    members = [worker for _, worker in state.at(Stage.SEATED)]
    if members and state.round.status in (Status.ACTIVE, Status.PAUSING) and all(w.waiting for w in members):
        # Twice the limit: a rank that has just come into its wait may be about to get on.
        since = max([state.round.since, *(worker.ticked for worker in members)])
        yield Wait(since + 2 * state.step_limit, "all waiting", since=since)


def _of_worker(state: State, name: str, worker: Worker) -> Iterator[Wait]:
    if worker.stage is Stage.STARTING:
        yield Wait(worker.since + state.limits.start, "start", name)
    elif worker.stage is Stage.LEAVING:
        yield Wait(worker.since + state.limits.stop, "leave", name)
    elif worker.stage is Stage.DOOMED:
        yield Wait(worker.since + state.limits.stop, "death", name)
    else:
        yield Wait(worker.last_beat + state.limits.heartbeat, "beat", name)
        training = worker.stage is Stage.SEATED and state.round.status in (Status.ACTIVE, Status.PAUSING)
        if worker.stage is Stage.RETURNING or (training and not worker.waiting):
            since = max(worker.since, worker.ticked, state.round.since if training else 0.0)
            yield Wait(since + state.step_limit, "step", name, since)


def _of_job(state: State) -> Iterator[Wait]:
    limits, current = state.limits, state.round
    if state.phase is Phase.GATHERING:
        yield Wait(state.since + limits.start, "slots")
    elif state.phase is Phase.ENDING:
        yield Wait(state.since + 2 * limits.stop if state.killed else ending.late_at(state), "end")
        if not state.dismissed:
            yield Wait(ending.better_known_at(state), "end")
    elif state.phase is Phase.OPEN:
        if current.status is Status.FORMING:
            yield Wait(current.moved + limits.form, "form")
        elif current.status is Status.PAUSING and state.workers.count(Stage.SEATED):
            yield Wait(current.moved + state.step_limit, "pause")
        for at in (assembling.form_at(state), assembling.leave_at(state)):
            if at is not None:
                yield Wait(at, "round")
        if state.stop_signal:
            yield Wait(state.since + limits.stop, "stop")
        if state.hungry_since is not None:
            yield Wait(state.hungry_since + limits.start, "workers")


# What follows when it does not come -------------------------------------------------------------------
def overdue(state: State, wait: Wait, now: float) -> Outcome:
    """What follows when ``wait`` has ended without what was waited for."""
    limits = state.limits
    if wait.what == "slots":
        if limits.elastic and state.agents.slots >= limits.min_workers:
            return replace(state, phase=Phase.OPEN, since=now), ()  # go on with those that are there
        return ending.begin(state, causes.too_few_slots(state.agents.slots, state.wanted, limits.start), now), ()
    if wait.what == "agent":
        return losing.lose_agent(state, wait.name, now)
    if wait.what == "rest" and wait.name in state.agents:
        return state.agent(wait.name, rest_until=0.0), ()
    if wait.what == "stop":
        return ending.begin(state, causes.stopped(state.stop_signal, saved=False), now), ()
    if wait.what == "workers":
        found = state.workers.count(Stage.READY)
        return ending.begin(state, causes.too_few_workers(found, state.least, limits.start), now), ()
    if wait.what == "pause" and state.round.status is Status.PAUSING:  # perhaps it was lost with a connection
        return state.in_round(moved=now), (PauseRound(tuple(name for name, _ in state.at(Stage.SEATED)), "resize"),)
    if wait.what == "form" and state.round.status is Status.FORMING:
        return losing.not_formed(state, "the round could not be formed in time", now)
    if wait.what == "all waiting" and state.running:
        return _nobody_gets_on(state, now - wait.since, now)
    if wait.name in state.workers:
        return _of_late_worker(state, wait, state.workers[wait.name], now)
    return state, ()


def _of_late_worker(state: State, wait: Wait, worker: Worker, now: float) -> Outcome:
    limits, name = state.limits, wait.name
    if wait.what == "start" and worker.stage is Stage.STARTING:
        cause = causes.not_ready([worker.rank], limits.start)
        return losing.lose(state, name, cause, now, own_fault=True, kill=True, stacks=True)
    if wait.what == "leave" and worker.stage is Stage.LEAVING:
        return state.worker(name, stage=Stage.DOOMED, since=now), (KillWorker(name, worker.agent, stacks=True),)
    if wait.what == "death" and worker.stage is Stage.DOOMED:
        # SIGKILL takes its time (a process in the kernel's hands); ask again.
        return state.worker(name, since=now), (KillWorker(name, worker.agent),)
    if wait.what == "beat" and worker.alive:
        cause = causes.silent(worker.rank, limits.heartbeat, worker.step)
        return losing.lose(state, name, cause, now, kill=True, stacks=True)
    if wait.what == "step" and worker.taking_part:
        cause = causes.stuck(worker.rank, now - wait.since, worker.step)
        return losing.lose(state, name, cause, now, kill=True, stacks=True)
    return state, ()


def _nobody_gets_on(state: State, seconds: float, now: float) -> Outcome:
    """Everybody waits for the others: no single one is to blame, so all try again."""
    cause = causes.no_progress(seconds, state.progress)
    if not state.limits.elastic:
        return ending.begin(state, cause, now), ()
    return losing.break_round(state, cause.reason, now, failure=cause)
