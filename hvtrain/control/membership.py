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

from hvtrain.control import assembling, causes, ending, losing, newcomers, watching
from hvtrain.control.events import (
    Action, AgentBeat, AgentJoined, AgentLeaving, AgentLost, Event, JobFailed, ReleaseAgent, RenewLease,
    RoundActive, ScaleRequested, StopRequested, TellStop, Tick, WorkerBeat, WorkerEnded, WorkerExited, WorkerFormed,
    WorkerLeaving, WorkerReady,
)
from hvtrain.control.roster import PACE_HALVES, Agent, Phase, Stage, State, Status, replace

Outcome = tuple[State, tuple[Action, ...]]

SIGNS_OF_LIFE = (AgentBeat, WorkerBeat)
"""Events that nothing follows from but later deadlines."""


def step(state: State, event: Event, now: float) -> Outcome:
    """The next state and what to do, after ``event`` at time ``now`` (seconds)."""
    if state.phase is Phase.OVER:
        return state, ()
    state, actions = _HANDLERS[type(event)](state, event, now)
    if not isinstance(event, SIGNS_OF_LIFE):
        state, actions = _settle(state, actions, now)
    return watching.looked(state) if isinstance(event, Tick) else watching.moved_on(state, now), actions


def deadline(state: State) -> float | None:
    """When a :class:`Tick` is due at the latest; None once the job is over."""
    return None if state.phase is Phase.OVER else watching.deadline(state)


def _settle(state: State, actions: tuple[Action, ...], now: float) -> Outcome:
    """What follows from a state by itself."""
    if state.phase in (Phase.GATHERING, Phase.OPEN):
        state, more = assembling.settle(state, now)
        actions += more
    if state.phase is Phase.OPEN and _all_finished(state):
        saved = state.stop_signal and state.stopped
        state = ending.begin(state, causes.stopped(state.stop_signal, saved=True) if saved else causes.done(), now)
    if state.phase is Phase.ENDING:
        state, more = ending.settle(state, now)
        actions += more
    return state, actions


def _all_finished(state: State) -> bool:
    crew = state.workers
    return (state.round.status in (Status.ACTIVE, Status.PAUSING) and crew.count(Stage.FINISHED) > 0
            and not crew.count(Stage.SEATED, Stage.RETURNING))


# Agents -----------------------------------------------------------------------------------------------
def _agent_joined(state: State, event: AgentJoined, now: float) -> Outcome:
    agents = state.agents.put(event.agent, Agent(event.host, event.slots, last_beat=now))
    return newcomers.received(replace(state, agents=agents), event.agent, now)


def _agent_beat(state: State, event: AgentBeat, now: float) -> Outcome:
    return (state.agent(event.agent, last_beat=now) if event.agent in state.agents else state), ()


def _agent_lost(state: State, event: AgentLost, now: float) -> Outcome:
    theirs = any(worker.agent == event.agent for worker in state.workers.values())
    if ending.in_tail(state) and theirs and event.agent in state.agents:
        state = ending.fail(state, causes.lost_agent(event.agent, state.agents[event.agent].host), now)
    return losing.lose_agent(state, event.agent, now, ended=event.ended)


def _agent_leaving(state: State, event: AgentLeaving, now: float) -> Outcome:
    if event.agent not in state.agents:
        return state, ()
    state = state.agent(event.agent, leaving=True)
    if not state.limits.elastic or state.agents.slots < state.limits.min_workers:
        return _stop_requested(state, StopRequested(signal.SIGTERM), now)
    theirs = {name: worker for name, worker in state.workers.items() if worker.agent == event.agent}
    state = state.with_workers({name: replace(worker, leave=True, since=now) for name, worker in theirs.items()
                                if not worker.leave and (worker.taking_part or worker.stage is Stage.FINISHED)})
    return state, (() if theirs else (ReleaseAgent(event.agent),))


# Workers ----------------------------------------------------------------------------------------------
def _worker_ready(state: State, event: WorkerReady, now: float) -> Outcome:
    worker = state.workers.get(event.worker)
    if worker is None or worker.stage not in (Stage.STARTING, Stage.SEATED, Stage.RETURNING):
        return state, ()
    actions: tuple[Action, ...] = ()
    if worker.stage is Stage.SEATED and state.phase is Phase.OPEN:
        if event.round < state.round.number and (event.worker in state.round.formed or event.round > worker.returned):
            return state, ()  # said before it has taken the seat that is on its way to it
        state, actions = _came_back(state, event, now)
        if state.workers[event.worker].stage is Stage.LEAVING:  # it is new, and not reached
            return state, actions
    if event.worker in state.round.members and event.round == state.round.number:
        state = state.in_round(left=True)
    if worker.stage is Stage.STARTING:
        state = replace(state, false_starts=0, first_false_start=None).readied(now - worker.since)
        if state.agents[worker.agent].false_starts:
            state = state.agent(worker.agent, false_starts=0, rest_until=0.0)
    state = state.worker(event.worker, stage=Stage.READY, since=now, last_beat=now, step=event.step, waiting=False,
                         returned=event.round)
    return replace(state, progress=max(state.progress, event.step)), actions


def _came_back(state: State, event: WorkerReady, now: float) -> Outcome:
    """A member has left the round by itself: it was asked to, or it has noticed something that we have not."""
    rank, status = state.workers[event.worker].rank, state.round.status
    if event.round < state.round.number:  # it repeats itself, for its connection was broken
        return losing.break_round(state, f"the seat of rank {rank} may be lost", now, failure=None)
    if status is Status.FORMING:
        return losing.not_formed(state, causes.not_connected(rank, event.reason), now)
    if status is Status.ACTIVE:
        failure = causes.lost_connection(rank, state.progress)
        return losing.break_round(state, failure.reason, now, failure=failure)
    return state, ()


def _worker_formed(state: State, event: WorkerFormed, now: float) -> Outcome:
    current, worker = state.round, state.workers.get(event.worker)
    if (event.round != current.number or current.status is not Status.FORMING or worker is None
            or worker.stage is not Stage.SEATED):
        return state, ()
    state = state.worker(event.worker, step=event.step, last_beat=now, ticked=now)
    state = state.in_round(formed=current.formed | {event.worker}, moved=now)
    if len(state.round.formed) < len(current.members):
        return state, ()
    state = newcomers.trained(state.in_round(status=Status.ACTIVE, since=now))
    actions: tuple[Action, ...] = (RoundActive(current.number, event.step, state.progress),)
    state = replace(state, born=True, progress=event.step, unformed=0, retry_at=0.0)
    if state.stop_signal:  # who came later has not been told
        actions += (TellStop(current.members, state.stop_signal),)
    return state, actions


def _worker_beat(state: State, event: WorkerBeat, now: float) -> Outcome:
    worker = state.workers.get(event.worker)
    if worker is None:
        return state, ()
    # Who comes out of a wait gets on, though it has not got anything done yet.
    moved = event.ticks != worker.ticks or (worker.waiting and not event.waiting)
    seated = worker.stage is Stage.SEATED
    changed = replace(worker, last_beat=now, ticks=event.ticks, waiting=event.waiting,
                      step=max(worker.step, event.step) if seated else worker.step,
                      ticked=now if moved else worker.ticked)
    state = state.with_workers({event.worker: changed})
    if seated and moved and state.round.status is Status.FORMING:
        state = state.in_round(moved=now)
    if seated:
        pace = state.pace * 0.5 ** ((now - state.paced) / PACE_HALVES)
        state = replace(state, progress=max(state.progress, event.step), pace=max(pace, event.slowest), paced=now)
    # Not before last_beat is set, and not to who counts as lost: the lease rests on both.
    counts = event.stamp and worker.stage not in (Stage.DOOMED, Stage.LEAVING)
    return state, ((RenewLease(event.worker, event.stamp),) if counts else ())


def _worker_leaving(state: State, event: WorkerLeaving, now: float) -> Outcome:
    worker = state.workers.get(event.worker)
    if worker is None or not worker.taking_part or worker.leave:
        return state, ()
    if not state.limits.elastic:  # there will be no other in its place
        return _stop_requested(state, StopRequested(signal.SIGTERM), now)
    return state.worker(event.worker, leave=True, since=now), ()


def _worker_ended(state: State, event: WorkerEnded, now: float) -> Outcome:
    worker = state.workers.get(event.worker)
    if worker is not None and worker.stage is Stage.FINISHED and event.cause is not None and ending.in_tail(state):
        return ending.fail(state, event.cause, now), ()
    if worker is None or worker.stage in (Stage.DOOMED, Stage.FINISHED, Stage.LEAVING):
        return state, ()
    opened = state.phase is Phase.OPEN
    if event.step is not None and opened:
        state = replace(state, progress=max(state.progress, event.step))
    if (event.cause is not None or event.left) and event.worker in state.round.members:
        state = state.in_round(left=True)
    if event.cause is not None:
        return losing.failed(state, event.worker, event.cause, now)
    actions: tuple[Action, ...] = ()
    if event.left:
        if worker.stage is Stage.SEATED and opened and state.running:
            state, actions = losing.break_round(state, f"rank {worker.rank} has left", now, failure=None)
        return state.worker(event.worker, stage=Stage.LEAVING, since=now), actions
    if event.stopped and opened:
        state = state if state.stop_signal else replace(state, stop_signal=signal.SIGTERM, since=now)
    if worker.stage is Stage.SEATED:  # else its message has crossed ours that the round is broken
        state = replace(state, stopped=event.stopped)
        state = state.worker(event.worker, stage=Stage.FINISHED, since=now,
                             step=worker.step if event.step is None else event.step)
    return state, actions


def _worker_exited(state: State, event: WorkerExited, now: float) -> Outcome:
    worker = state.workers.get(event.worker)
    if worker is None:
        return state, ()
    actions: tuple[Action, ...] = ()
    if event.worker in state.round.members:
        state = state.in_round(left=True)
    if ending.in_tail(state) and worker.stage is Stage.FINISHED and (event.code or event.signal):
        host = state.agents[worker.agent].host if worker.agent in state.agents else worker.agent
        state = ending.fail(state, causes.lost_tail(worker.rank, host, event.code, event.signal, worker.step), now)
    if worker.taking_part and not (state.phase is Phase.ENDING and state.dismissed):
        host = state.agents[worker.agent].host if worker.agent in state.agents else worker.agent
        cause = causes.lost_worker(worker.rank, host, event.code, event.signal, worker.step)
        own_fault = cause.kind != "killed"
        state, actions = losing.lose(state, event.worker, cause, now, own_fault=own_fault)
    state = state.without(event.worker)
    agent = state.agents.get(worker.agent)
    if (agent is not None and agent.leaving and state.phase is Phase.OPEN and not state.stop_signal
            and not any(w.agent == worker.agent for w in state.workers.values())):
        actions += (ReleaseAgent(worker.agent),)  # at the job's end all are told how it ended
    return state, actions


# People and clocks ------------------------------------------------------------------------------------
def _scale_requested(state: State, event: ScaleRequested, now: float) -> Outcome:
    return (replace(state, wanted=event.workers, follow=False) if state.phase is Phase.OPEN else state), ()


def _job_failed(state: State, event: JobFailed, now: float) -> Outcome:
    return ending.begin(state, event.cause, now), ()


def _stop_requested(state: State, event: StopRequested, now: float) -> Outcome:
    again = event.insist and state.insisted
    state = replace(state, insisted=state.insisted or event.insist)
    if ending.in_tail(state):  # what the training has come to is saved
        return ending.hasten(ending.fail(state, causes.stopped(event.signal, saved=True), now), now), ()
    if state.phase is Phase.ENDING:
        return (ending.hasten(state, now) if again else state), ()
    if not state.born or again:
        return ending.begin(state, causes.stopped(event.signal, saved=False), now), ()
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
