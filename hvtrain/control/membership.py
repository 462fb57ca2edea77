"""Who belongs to the job and what has to happen next: a pure state machine, no I/O and no clock of its own.

::

    GATHERING --all agents--> STARTING --all ready--> RUNNING --first end--> ENDING --all gone--> OVER
        \\__________________________\\__________________/  failure, stop, deadline

``step(state, event, now)`` returns the next state and the actions that the coordinator is to carry out.
``now`` is any clock that only grows, in seconds. Every phase that waits has a deadline: feed :class:`Tick`
when :func:`deadline` is reached. In this version a lost worker ends the job; its round is not formed anew.
"""

from __future__ import annotations

import signal
from dataclasses import replace
from types import MappingProxyType

from hvtrain.control import causes
from hvtrain.control.causes import Cause
from hvtrain.control.events import (
    Action, AgentJoined, AgentLost, CutRound, EndJob, Event, FormRound, JobFailed, KillWorker,
    StartWorker, StopRequested, TellStop, Tick, WorkerBeat, WorkerEnded, WorkerExited, WorkerReady,
)
from hvtrain.control.roster import Agent, Limits, Phase, State, Worker

Outcome = tuple[State, tuple[Action, ...]]


def step(state: State, event: Event, now: float) -> Outcome:
    """The next state and what to do, after ``event`` at time ``now`` (seconds)."""
    if state.phase is Phase.OVER:
        return state, ()
    return _settle(*_HANDLERS[type(event)](state, event, now), now)


def deadline(state: State) -> float | None:
    """When a :class:`Tick` is due at the latest; None once the job is over."""
    limits = state.limits
    if state.phase in (Phase.GATHERING, Phase.STARTING):
        return state.since + limits.start
    if state.phase is Phase.RUNNING:
        beats = [w.last_beat for w in state.workers.values() if w.seated and not w.done and not w.gone]
        due = [min(beats) + limits.heartbeat] if beats else []
        if state.stop_signal or not beats:
            due.append(state.since + limits.stop)
        return min(due)
    if state.phase is Phase.ENDING:
        waits = [state.since + (2 * limits.stop if state.killed else limits.stop)]
        if not state.cut or (not state.hushed and _unborn(state)):
            waits.append(state.since + limits.verdict)
        return min(waits)
    return None


# Handlers ---------------------------------------------------------------------------------------------
def _agent_joined(state: State, event: AgentJoined, now: float) -> Outcome:
    agents = {**state.agents, event.agent: Agent(event.host, event.slots)}
    state = replace(state, agents=MappingProxyType(agents))
    if state.phase is not Phase.GATHERING or sum(a.slots for a in agents.values()) < state.wanted:
        return state, ()
    # By name, not by who came first: the same job has the same ranks on the same hosts each time.
    places = [name for name in sorted(agents) for _ in range(agents[name].slots)][: state.wanted]
    workers = {f"w{rank}": Worker(agent=name, rank=rank) for rank, name in enumerate(places)}
    state = replace(state, phase=Phase.STARTING, since=now, workers=MappingProxyType(workers))
    hosts = [agents[name].host for name in places]
    return state, tuple(StartWorker(name, w.agent, w.rank, hosts[:w.rank].count(hosts[w.rank]))
                        for name, w in workers.items())


def _agent_lost(state: State, event: AgentLost, now: float) -> Outcome:
    agent = state.agents.get(event.agent)
    if agent is None:
        return state, ()
    theirs = {name: worker for name, worker in state.workers.items() if worker.agent == event.agent}
    for name in theirs:
        state = _with(state, name, gone=True, done=True)
    if state.workers and all(worker.ended_well for worker in theirs.values()):
        return state, ()  # it had no part in the job, or had finished it
    return _begin_end(state, causes.lost_agent(event.agent, agent.host), now), ()


def _worker_ready(state: State, event: WorkerReady, now: float) -> Outcome:
    if event.worker not in state.workers or state.phase is not Phase.STARTING:
        return state, ()
    state = _with(state, event.worker, ready=True)
    if not all(worker.ready for worker in state.workers.values()):
        return state, ()
    ordered = sorted(state.workers, key=lambda name: state.workers[name].rank)
    members = tuple((name, state.agents[state.workers[name].agent].host) for name in ordered)
    for name in ordered:
        state = _with(state, name, seated=True, last_beat=now)
    state = replace(state, phase=Phase.RUNNING, since=now, round=state.round + 1)
    return state, (FormRound(state.round, members),)


def _worker_beat(state: State, event: WorkerBeat, now: float) -> Outcome:
    if event.worker in state.workers:
        state = _with(state, event.worker, last_beat=now, step=event.step)
    return state, ()


def _worker_ended(state: State, event: WorkerEnded, now: float) -> Outcome:
    if event.worker not in state.workers or state.workers[event.worker].told:
        return state, ()
    state = _with(state, event.worker, told=True, done=True, ended_well=event.cause is None)
    if event.cause is not None:
        return _begin_end(state, event.cause, now), ()
    if event.stopped and not state.stop_signal:
        state = replace(state, stop_signal=signal.SIGTERM, since=now)
    if state.phase is Phase.RUNNING and all(w.done for w in state.workers.values()):
        state = replace(state, since=now)
    return state, ()


def _worker_exited(state: State, event: WorkerExited, now: float) -> Outcome:
    worker = state.workers.get(event.worker)
    if worker is None or worker.gone:
        return state, ()
    state = _with(state, event.worker, gone=True, done=True)
    if worker.told or state.cut or state.killed:  # its end was announced, or ordered
        return state, ()
    host = state.agents[worker.agent].host
    return _begin_end(state, causes.lost_worker(worker.rank, host, event.code, event.signal, worker.step), now), ()


def _job_failed(state: State, event: JobFailed, now: float) -> Outcome:
    return _begin_end(state, event.cause, now), ()


def _stop_requested(state: State, event: StopRequested, now: float) -> Outcome:
    if state.phase is Phase.ENDING:
        return state, ()
    if state.phase is not Phase.RUNNING or (event.insist and state.insisted):
        return _begin_end(state, causes.stopped(event.signal, saved=False), now), ()
    state = replace(state, insisted=state.insisted or event.insist)
    if state.stop_signal:
        return state, ()
    state = replace(state, stop_signal=event.signal, since=now)
    return state, (TellStop(_active(state), event.signal),)


def _tick(state: State, event: Tick, now: float) -> Outcome:
    due = deadline(state)
    if due is None or now < due:
        return state, ()
    if state.phase is Phase.GATHERING:
        found = sum(agent.slots for agent in state.agents.values())
        return _begin_end(state, causes.too_few_slots(found, state.wanted, state.limits.start), now), ()
    if state.phase is Phase.STARTING:
        late = [worker.rank for worker in state.workers.values() if not worker.ready]
        return _begin_end(state, causes.not_ready(late, state.limits.start), now), ()
    if state.phase is Phase.RUNNING:
        silent = [w.rank for w in state.workers.values()
                  if w.seated and not w.done and now >= w.last_beat + state.limits.heartbeat]
        if silent:
            return _begin_end(state, causes.stalled(silent, state.limits.heartbeat), now), ()
        if state.stop_signal:
            return _begin_end(state, causes.stopped(state.stop_signal, saved=False), now), ()
    return state, ()  # ENDING, and RUNNING with all done: _settle looks at the clock


_HANDLERS = {
    AgentJoined: _agent_joined, AgentLost: _agent_lost, WorkerReady: _worker_ready, WorkerBeat: _worker_beat,
    WorkerEnded: _worker_ended, WorkerExited: _worker_exited, JobFailed: _job_failed,
    StopRequested: _stop_requested, Tick: _tick,
}


# Ending -----------------------------------------------------------------------------------------------
def _begin_end(state: State, cause: Cause, now: float) -> State:
    """Enter ENDING, or let a better cause replace the known one while its verdict is awaited."""
    if state.phase is not Phase.ENDING:
        return replace(state, phase=Phase.ENDING, since=now, cause=cause)
    if state.cause is None or cause.weight > state.cause.weight:
        return replace(state, cause=cause)
    return state


def _settle(state: State, actions: tuple[Action, ...], now: float) -> Outcome:
    """What follows from a state by itself: cutting the broken round, killing the late, ending the job."""
    if state.phase is Phase.RUNNING and state.workers:
        everyone = state.workers.values()
        late = now >= state.since + state.limits.stop and all(w.done for w in everyone)
        if all(w.gone for w in everyone) or late:
            cause = causes.stopped(state.stop_signal, saved=True) if state.stop_signal else causes.done()
            return _over(replace(state, cause=cause), actions)
    if state.phase is not Phase.ENDING:
        return state, actions
    assert state.cause is not None
    alive = [name for name, worker in state.workers.items() if not worker.gone]
    if not alive:
        return _over(state, actions)
    if not state.cut and (state.cause.weight >= causes.OBSERVED or now >= state.since + state.limits.verdict
                          or all(w.done for w in state.workers.values())):
        seated = tuple(name for name in _active(state) if state.workers[name].rank not in state.cause.silent)
        salvager = min(seated, key=lambda name: state.workers[name].rank) if seated else None
        salvager = salvager if state.cause.salvage else None
        state = replace(state, cut=True)
        if seated:
            actions += (CutRound(seated, salvager),)
        # Who has no seat has nothing to save, and who does not answer will not start to now.
        deaf = [name for name in alive
                if not state.workers[name].seated or state.workers[name].rank in state.cause.silent]
        actions += tuple(KillWorker(name, state.workers[name].agent) for name in deaf)
    if state.cut and not state.hushed and now >= state.since + state.limits.verdict:
        # A member that died while the round was forming may leave another one inside init(), waiting to be
        # connected to; no socket is there yet that could be cut. It has trained nothing that could be lost.
        state = replace(state, hushed=True)
        actions += tuple(KillWorker(name, state.workers[name].agent) for name in _unborn(state))
    if not state.killed and now >= state.since + state.limits.stop:
        state = replace(state, killed=True)
        actions += tuple(KillWorker(name, state.workers[name].agent) for name in alive)
    elif state.killed and now >= state.since + 2 * state.limits.stop:
        return _over(state, actions)  # not even SIGKILL was confirmed: the agents' own end will do it
    return state, actions


def _over(state: State, actions: tuple[Action, ...]) -> Outcome:
    assert state.cause is not None
    return replace(state, phase=Phase.OVER), (*actions, EndJob(state.cause))


def _unborn(state: State) -> tuple[str, ...]:
    """Workers that are alive, silent about their end, and have not completed a single step."""
    return tuple(name for name in _active(state) if state.workers[name].step == 0)


def _active(state: State) -> tuple[str, ...]:
    return tuple(name for name, worker in state.workers.items() if worker.seated and not worker.done)


def _with(state: State, name: str, **changes) -> State:
    return replace(state, workers=MappingProxyType({**state.workers, name: replace(state.workers[name], **changes)}))
