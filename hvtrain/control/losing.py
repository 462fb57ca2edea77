"""What the loss of a worker or an agent means for the round and for the job."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

from hvtrain.control import causes, ending
from hvtrain.control.causes import Cause
from hvtrain.control.events import Action, CutRound, Dismiss, DropAgent, KillWorker, ReportLoss
from hvtrain.control.roster import Phase, Stage, State, Status

Outcome = tuple[State, tuple[Action, ...]]

HOUR = 3600.0


def lose(state: State, name: str, cause: Cause, now: float, *, own_fault: bool = False, kill: bool = False,
         stacks: bool = False) -> Outcome:
    """The worker is lost, by ``cause``. Its seat is empty; nobody waits for it from here on.

    Args:
        own_fault: it ended by itself, so that its successor may do the same: that counts as a failure.
        kill: its process may still be there.
        stacks: and is to write down what it was doing.
    """
    worker = state.workers[name]
    actions: tuple[Action, ...] = (ReportLoss(name, worker.rank, worker.agent, cause),)
    if kill:
        actions += (KillWorker(name, worker.agent, stacks),)
    was_member = worker.stage is Stage.SEATED and name in state.round.members
    state = state.worker(name, stage=Stage.DOOMED, since=now)
    if state.phase is not Phase.OPEN:
        # Before anybody trains a loss ends the job; while it ends, a better account may still come.
        return ending.begin(state, cause, now), actions
    state = replace(state, losses=tuple(t for t in state.losses if now - t < HOUR) + (now,))
    limit = state.limits.losses_per_hour
    if not state.limits.elastic or (own_fault and not state.born):
        return ending.begin(state, cause, now), actions
    if limit is not None and len(state.losses) > limit:
        return ending.begin(state, causes.too_many_losses(len(state.losses), cause), now), actions
    if was_member and state.round.status in (Status.FORMING, Status.ACTIVE, Status.PAUSING):
        failure = cause if own_fault or state.round.status is not Status.FORMING else None
        state, more = break_round(state, cause.reason, now, failure=failure)
        return replace(state, unformed=0), actions + more
    if own_fault:
        state = replace(state, open_failure=state.open_failure or cause)
    return state, actions


def failed(state: State, name: str, cause: Cause, now: float) -> Outcome:
    """The worker has ended by an exception of its own."""
    if not state.limits.elastic or not cause.passing or not state.born or state.phase is not Phase.OPEN:
        state = state.worker(name, stage=Stage.DOOMED, since=now)
        return ending.begin(state, cause, now), ()
    return lose(state, name, cause, now, own_fault=True)


def break_round(state: State, reason: str, now: float, *, failure: Cause | None) -> Outcome:
    """End the round: its members come back for another one. ``failure`` is what the step failed of."""
    members = [(n, w) for n, w in state.at(Stage.SEATED, Stage.FINISHED, Stage.READY) if n in state.round.members]
    state = state.with_workers({name: replace(worker, stage=Stage.RETURNING, since=now, waiting=False, ticked=now)
                                for name, worker in members if worker.stage is not Stage.READY})
    state = state.in_round(status=Status.BROKEN, since=now, broken_at=now)
    state = replace(state, open_failure=state.open_failure or failure)
    return state, (CutRound(state.round.number, tuple(name for name, _ in members), reason),)


def lose_agent(state: State, name: str, now: float) -> Outcome:
    """An agent is gone, or does not answer; so are its workers, or they are to go."""
    agent = state.agents.get(name)
    if agent is None:
        return state, ()
    cause = causes.lost_agent(name, agent.host)
    actions: tuple[Action, ...] = (DropAgent(name),)
    theirs = [n for n, worker in state.workers.items() if worker.agent == name]
    if theirs:  # who of them is still alive has lost its parent, or is about to
        actions += (Dismiss(tuple(theirs)),)
    for worker in theirs:
        if state.workers[worker].taking_part:
            state, more = lose(state, worker, cause, now)
            actions += more
        state = state.without(worker)
    state = replace(state, agents=MappingProxyType({n: a for n, a in state.agents.items() if n != name}))
    if state.phase is Phase.OPEN and not state.limits.elastic and theirs:
        state = ending.begin(state, cause, now)
    return state, actions
