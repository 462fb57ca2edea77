"""Who belongs to the job and what has to happen next: a pure state machine, no I/O and no clock of its own.

::

    GATHERING --slots--> OPEN --cause known--> ENDING --all gone--> OVER

    a round, within OPEN:   NONE --all ready--> FORMING --all formed--> ACTIVE --> all finished: the job ends
                              ^                    | loss              | loss      | resize
                              |                    v                   v           v
                              +------------------ BROKEN <-------------+        PAUSING
                                   survivors ready, replacement ready or late: FORMING again

``step(state, event, now)`` returns the next state and the actions that the coordinator is to carry out.
``now`` is any clock that only grows, in seconds. Whatever is waited for has a deadline: feed :class:`Tick`
when :func:`deadline` is reached.
"""

from __future__ import annotations

import signal
from dataclasses import replace
from types import MappingProxyType

from hvtrain.control import assembling, causes, ending, losing, watching
from hvtrain.control.events import (
    Action, AgentBeat, AgentJoined, AgentLeaving, AgentLost, Event, JobFailed, ReleaseAgent, RoundActive,
    ScaleRequested, StopRequested, TellStop, Tick, WorkerBeat, WorkerEnded, WorkerExited, WorkerFormed,
    WorkerLeaving, WorkerReady,
)
from hvtrain.control.roster import Agent, Phase, Stage, State, Status

Outcome = tuple[State, tuple[Action, ...]]

CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE}
"""Signals by which a process ends through its own fault, so that its successor is likely to do the same."""


def step(state: State, event: Event, now: float) -> Outcome:
    """The next state and what to do, after ``event`` at time ``now`` (seconds)."""
    if state.phase is Phase.OVER:
        return state, ()
    state, actions = _HANDLERS[type(event)](state, event, now)
    return _settle(state, actions, now)


def deadline(state: State) -> float | None:
    """When a :class:`Tick` is due at the latest; None once the job is over."""
    if state.phase is Phase.OVER:
        return None
    return min(wait.at for wait in watching.waits(state))


def _settle(state: State, actions: tuple[Action, ...], now: float) -> Outcome:
    """What follows from a state by itself."""
    if state.phase in (Phase.GATHERING, Phase.OPEN):
        state, more = assembling.settle(state, now)
        actions += more
    if state.phase is Phase.OPEN and _all_finished(state):
        cause = causes.stopped(state.stop_signal, saved=True) if state.stop_signal else causes.done()
        state = ending.begin(state, cause, now)
    if state.phase is Phase.ENDING:
        state, more = ending.settle(state, now)
        actions += more
    return state, actions


def _all_finished(state: State) -> bool:
    stages = {worker.stage for worker in state.workers.values()}
    return (state.born and Stage.FINISHED in stages and not stages & {Stage.SEATED, Stage.RETURNING}
            and state.round.status in (Status.ACTIVE, Status.PAUSING))


# Agents -----------------------------------------------------------------------------------------------
def _agent_joined(state: State, event: AgentJoined, now: float) -> Outcome:
    agents = {**state.agents, event.agent: Agent(event.host, event.slots, last_beat=now)}
    return replace(state, agents=MappingProxyType(agents)), ()


def _agent_beat(state: State, event: AgentBeat, now: float) -> Outcome:
    return (state.agent(event.agent, last_beat=now) if event.agent in state.agents else state), ()


def _agent_lost(state: State, event: AgentLost, now: float) -> Outcome:
    return losing.lose_agent(state, event.agent, now)


def _agent_leaving(state: State, event: AgentLeaving, now: float) -> Outcome:
    if event.agent not in state.agents or state.phase is not Phase.OPEN or not state.limits.elastic:
        return _stop_requested(state, StopRequested(signal.SIGTERM), now)
    state = state.agent(event.agent, leaving=True)
    slots = sum(agent.slots for agent in state.agents.values() if not agent.leaving)
    if slots < state.limits.min_workers or not slots:
        return _stop_requested(state, StopRequested(signal.SIGTERM), now)
    theirs = {name: replace(worker, leave=True, since=now) for name, worker in state.workers.items()
              if worker.agent == event.agent and worker.taking_part}
    return state.with_workers(theirs), (() if theirs else (ReleaseAgent(event.agent),))


# Workers ----------------------------------------------------------------------------------------------
def _worker_ready(state: State, event: WorkerReady, now: float) -> Outcome:
    worker = state.workers.get(event.worker)
    if worker is None or worker.stage not in (Stage.STARTING, Stage.SEATED, Stage.RETURNING):
        return state, ()
    actions: tuple[Action, ...] = ()
    running = state.round.status in (Status.FORMING, Status.ACTIVE)
    if worker.stage is Stage.SEATED and running:
        # It noticed by itself that something is wrong, or its seat never reached it.
        state, actions = losing.break_round(state, f"rank {worker.rank} lost a connection", now, failure=None)
    state = state.worker(event.worker, stage=Stage.READY, since=now, last_beat=now, step=event.step, waiting=False)
    return replace(state, progress=max(state.progress, event.step)), actions


def _worker_formed(state: State, event: WorkerFormed, now: float) -> Outcome:
    current = state.round
    if event.round != current.number or current.status is not Status.FORMING or event.worker not in current.members:
        return state, ()
    state = state.worker(event.worker, step=event.step, last_beat=now, ticked=now)
    state = state.in_round(formed=current.formed | {event.worker})
    if len(state.round.formed) < len(current.members):
        return state, ()
    state = state.in_round(status=Status.ACTIVE, since=now)
    actions: tuple[Action, ...] = (RoundActive(current.number, event.step, state.progress),)
    state = replace(state, born=True, progress=event.step, unformed=0, hungry_since=None)
    if state.stop_signal:  # who came later has not been told
        actions += (TellStop(current.members, state.stop_signal),)
    return state, actions


def _worker_beat(state: State, event: WorkerBeat, now: float) -> Outcome:
    worker = state.workers.get(event.worker)
    if worker is None:
        return state, ()
    moved = event.ticks != worker.ticks or event.step != worker.step
    state = state.worker(event.worker, last_beat=now, ticks=event.ticks, waiting=event.waiting,
                         step=max(worker.step, event.step) if worker.stage is Stage.SEATED else worker.step,
                         ticked=now if moved else worker.ticked)
    if worker.stage is Stage.SEATED:
        state = replace(state, progress=max(state.progress, event.step), pace=max(0.9 * state.pace, event.slowest))
    return state, ()


def _worker_leaving(state: State, event: WorkerLeaving, now: float) -> Outcome:
    worker = state.workers.get(event.worker)
    if worker is None or not worker.taking_part:
        return state, ()
    return state.worker(event.worker, leave=True, since=now), ()


def _worker_ended(state: State, event: WorkerEnded, now: float) -> Outcome:
    worker = state.workers.get(event.worker)
    if worker is None or worker.stage in (Stage.DOOMED, Stage.FINISHED):
        return state, ()
    if event.step is not None and state.phase is Phase.OPEN:
        state = replace(state, progress=max(state.progress, event.step))
    if event.cause is not None:
        return losing.failed(state, event.worker, event.cause, now)
    if event.left or worker.stage is Stage.LEAVING:
        return state.worker(event.worker, stage=Stage.LEAVING), ()
    if worker.stage is not Stage.RETURNING:  # else its message has crossed ours that the round is broken
        state = state.worker(event.worker, stage=Stage.FINISHED, since=now)
    if event.stopped and not state.stop_signal:
        state = replace(state, stop_signal=signal.SIGTERM, since=now)
    return state, ()


def _worker_exited(state: State, event: WorkerExited, now: float) -> Outcome:
    worker = state.workers.get(event.worker)
    if worker is None:
        return state, ()
    actions: tuple[Action, ...] = ()
    if worker.taking_part and not (state.phase is Phase.ENDING and state.dismissed):
        host = state.agents[worker.agent].host if worker.agent in state.agents else worker.agent
        cause = causes.lost_worker(worker.rank, host, event.code, event.signal, worker.step)
        itself = event.signal in CRASHES or not event.signal
        state, actions = losing.lose(state, event.worker, cause, now, own_fault=itself)
    state = state.without(event.worker)
    agent = state.agents.get(worker.agent)
    if agent is not None and agent.leaving and not any(w.agent == worker.agent for w in state.workers.values()):
        actions += (ReleaseAgent(worker.agent),)
    return state, actions


# People and clocks ------------------------------------------------------------------------------------
def _scale_requested(state: State, event: ScaleRequested, now: float) -> Outcome:
    return (replace(state, wanted=event.workers, follow=False) if state.phase is Phase.OPEN else state), ()


def _job_failed(state: State, event: JobFailed, now: float) -> Outcome:
    return ending.begin(state, event.cause, now), ()


def _stop_requested(state: State, event: StopRequested, now: float) -> Outcome:
    if state.phase is Phase.ENDING:
        return state, ()
    if not state.born or (event.insist and state.insisted):
        return ending.begin(state, causes.stopped(event.signal, saved=False), now), ()
    state = replace(state, insisted=state.insisted or event.insist)
    if state.stop_signal:
        return state, ()
    state = replace(state, stop_signal=event.signal, since=now)
    told = tuple(name for name, _ in state.at(Stage.SEATED, Stage.RETURNING, Stage.READY))
    return state, (TellStop(told, event.signal),)


def _tick(state: State, event: Tick, now: float) -> Outcome:
    actions: tuple[Action, ...] = ()
    for wait in [wait for wait in watching.waits(state) if now >= wait.at]:
        state, more = watching.overdue(state, wait, now)
        actions += more
        if state.phase is not Phase.OPEN:
            break
    return state, actions


_HANDLERS = {
    AgentJoined: _agent_joined, AgentBeat: _agent_beat, AgentLost: _agent_lost, AgentLeaving: _agent_leaving,
    WorkerReady: _worker_ready, WorkerFormed: _worker_formed, WorkerBeat: _worker_beat,
    WorkerLeaving: _worker_leaving, WorkerEnded: _worker_ended, WorkerExited: _worker_exited,
    ScaleRequested: _scale_requested, JobFailed: _job_failed, StopRequested: _stop_requested, Tick: _tick,
}
