"""Newcomers whom the others cannot reach: they are left out, and those that have trained together go on.

::

    round 3   w0 w1 train
    round 4   w0 w1 and w2, which is new: FORM_ATTEMPTS in a row fail, though nobody was lost
    round 7   w0 w1 train on, and people are told whom w2's host did not reach

    what is known of w2's host                what becomes of its agents
    no worker of it has ever trained here     they get no worker any more, and are told why
    one has, so it was reachable              they rest for launch.start_timeout, then start another worker

No host disturbs the others without end: after FORM_ATTEMPTS such failures within an hour its agents rest until that
hour is over, and those that join from a host that nobody knows are refused as they come.
"""

from __future__ import annotations

from typing import Iterable

from hvtrain.control import causes
from hvtrain.control.crew import Worker
from hvtrain.control.events import Action, Dismiss, KillWorker, RefuseAgent, ReportLeftOut
from hvtrain.control.roster import FORM_ATTEMPTS, HOUR, Stage, State, replace

Outcome = tuple[State, tuple[Action, ...]]


def hosts_to_leave_out(state: State) -> frozenset[str]:
    """Hosts of newcomers in the round, without whom it may be formed; none if the others could not go on without them.

    Those that nobody knows, if there are any: else all that are new in the round.
    """
    members = {name: state.workers[name] for name in state.round.members if name in state.workers}
    trained = [worker for worker in members.values() if worker.taking_part and worker.trained]
    fresh = [worker for worker in members.values() if worker.taking_part and not worker.trained]
    if not fresh or len(trained) < state.least or _latest(fresh) > _latest(trained):
        return frozenset()
    hosts = frozenset(_host(state, worker) for worker in fresh)
    return hosts - state.known or hosts


def leave_out(state: State, hosts: frozenset[str], now: float) -> Outcome:
    """Have the workers of these ``hosts`` that have never trained end, and no others come at once in their place."""
    attempts, trouble, actions = state.unformed, state.trouble, ()  # type: int, str, tuple[Action, ...]
    others = sorted({_host(state, worker) for worker in state.workers.values() if worker.trained})
    for host in sorted(hosts):
        times = (*_lately(state, host, now), now)
        state = replace(state, unreached={**state.unreached, host: times})
        reason = causes.left_out(host, others, attempts, trouble)
        again = host in state.known
        state, more = _see_off(state, host, reason, now)
        actions += (ReportLeftOut(host, reason, again), *more)
        for name in [name for name, agent in state.agents.items() if agent.host == host]:
            if again:
                state = state.agent(name, rest_until=_rested_at(state, times, now))
            else:
                state, actions = state.agent(name, refused=True), (*actions, RefuseAgent(name, reason))
    return state, actions


def received(state: State, name: str, now: float) -> Outcome:
    """An agent has joined: whether its host has troubled the others too often for it to get workers at once."""
    host = state.agents[name].host
    times = _lately(state, host, now)
    if len(times) < FORM_ATTEMPTS:
        return state, ()
    if host in state.known:
        return state.agent(name, rest_until=_rested_at(state, times, now)), ()
    return state.agent(name, refused=True), (RefuseAgent(name, causes.left_out_before(host, len(times))),)


def trained(state: State) -> State:
    """The round is active: its members have reached each other, so what was held against newcomers' hosts is over."""
    fresh = {name: state.workers[name] for name in state.round.members
             if name in state.workers and not state.workers[name].trained}
    hosts = frozenset(_host(state, worker) for worker in fresh.values())
    state = state.with_workers({name: replace(worker, trained=True) for name, worker in fresh.items()})
    return replace(state, known=state.known | hosts,
                   unreached={host: times for host, times in state.unreached.items() if host not in hosts})


def _see_off(state: State, host: str, reason: str, now: float) -> Outcome:
    theirs = {name: worker for name, worker in state.workers.items()
              if worker.taking_part and not worker.trained and _host(state, worker) == host}
    building = [name for name, worker in theirs.items() if worker.stage is Stage.STARTING]
    told = tuple(name for name in theirs if name not in building)
    state = state.with_workers({name: replace(worker, since=now, stage=Stage.LEAVING if name in told else Stage.DOOMED)
                                for name, worker in theirs.items()})
    actions: tuple[Action, ...] = (Dismiss(told, reason=reason),) if told else ()
    return state, actions + tuple(KillWorker(name, theirs[name].agent) for name in building)


def _host(state: State, worker: Worker) -> str:
    return state.agents[worker.agent].host


def _latest(workers: Iterable[Worker]) -> int:
    return max((worker.step for worker in workers), default=-1)


def _lately(state: State, host: str, now: float) -> tuple[float, ...]:
    """When newcomers of that host were left out within the last hour."""
    return tuple(at for at in state.unreached.get(host, ()) if now - at < HOUR)


def _rested_at(state: State, times: tuple[float, ...], now: float) -> float:
    return now + state.limits.start if len(times) < FORM_ATTEMPTS else max(now, times[-FORM_ATTEMPTS] + HOUR)
