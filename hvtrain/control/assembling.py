"""Putting rounds together: starting workers, choosing members and their ranks, growing and shrinking.

::

    round 1:  0:w0  1:w1  2:w2  3:w3         w1 dies, w4 is started in its place
    round 2:  0:w0  1:w4  2:w2  3:w3         in time: the replacement takes the dead one's rank
    round 2:  0:w0  1:w2  2:w3               late: the survivors close up and keep their order
    round 3:  0:w0  1:w2  2:w3  3:w4         and it joins at a later step
"""

from __future__ import annotations

from dataclasses import replace
from typing import Iterable

from hvtrain.control import causes, ending
from hvtrain.control.events import Action, Dismiss, FormRound, KillWorker, PauseRound, StartWorker
from hvtrain.control.roster import Phase, Stage, State, Status, Worker

Outcome = tuple[State, tuple[Action, ...]]

HERE = (Stage.STARTING, Stage.READY, Stage.SEATED, Stage.RETURNING, Stage.FINISHED)


def settle(state: State, now: float) -> Outcome:
    """Whatever can be done now towards the round that the job should have."""
    if state.phase is Phase.GATHERING:
        if not state.agents or sum(agent.slots for agent in state.agents.values()) < state.wanted:
            return state, ()
        state = replace(state, phase=Phase.OPEN, since=now)
    actions: tuple[Action, ...] = ()
    for part in (_fill, _form, _resize, _send_home):
        state, more = part(state, now)
        actions += more
        if state.phase is not Phase.OPEN:
            break
    return state, actions


# Starting workers -------------------------------------------------------------------------------------
def _fill(state: State, now: float) -> Outcome:
    if state.stop_signal or (state.next_number and not state.limits.elastic):
        return state, ()
    actions: tuple[Action, ...] = ()
    wanted = state.target + state.limits.spares
    while sum(1 for _, worker in state.at(*HERE) if not worker.leave) < wanted:
        agent = _free_agent(state)
        if agent is None:
            break
        name = f"w{state.next_number}"
        worker = Worker(agent, state.next_number, _free_rank(state, agent), since=now, local=_free_local(state, agent))
        state = replace(state.with_workers({name: worker}), next_number=state.next_number + 1)
        actions += (StartWorker(name, agent, worker.rank, worker.local),)
    return state, actions


def _free_agent(state: State) -> str | None:
    """By name, not by who came first: the same job has the same ranks on the same hosts each time."""
    for name in sorted(state.agents):
        agent = state.agents[name]
        taken = sum(worker.agent == name and not worker.leave for _, worker in state.at(*HERE))
        if not agent.leaving and taken < agent.slots:
            return name
    return None


def _free_rank(state: State, agent: str) -> int:
    """The rank of a lost member, else the next one: so a replacement writes on in the log of whom it replaces."""
    used = {worker.rank for _, worker in state.at(*HERE)}
    return next(rank for rank in range(len(used) + 1) if rank not in used)


def _free_local(state: State, agent: str) -> int:
    host = state.agents[agent].host
    used = {worker.local for _, worker in state.at(*HERE) if state.agents[worker.agent].host == host}
    return next(number for number in range(len(used) + 1) if number not in used)


# Forming a round --------------------------------------------------------------------------------------
def _form(state: State, now: float) -> Outcome:
    current = state.round
    if current.status in (Status.FORMING, Status.ACTIVE) or any(state.at(Stage.RETURNING)):
        return state, ()
    if current.status is Status.PAUSING and any(state.at(Stage.SEATED, Stage.FINISHED)):
        return state, ()
    ready = {name: worker for name, worker in state.at(Stage.READY) if not worker.leave}
    state, failed = _count_failure(state, ready, now)
    if failed:
        return state, ()
    if len(ready) < state.target and not _enough_time_passed(state, len(ready), now):
        return _hunger(state, len(ready), now), ()
    if len(ready) < (state.limits.min_workers if state.limits.elastic else state.target):
        return _hunger(state, len(ready), now), ()
    if not ready:
        return _hunger(state, 0, now), ()
    members = seating(state, ready)
    number = current.number + 1
    state = state.with_workers({name: replace(ready[name], stage=Stage.SEATED, rank=rank, since=now, last_beat=now,
                                              ticked=now, waiting=False) for rank, name in enumerate(members)})
    state = state.in_round(number=number, status=Status.FORMING, since=now, members=members, formed=frozenset())
    hosts = tuple((name, state.agents[state.workers[name].agent].host) for name in members)
    return replace(state, hungry_since=None), (FormRound(number, hosts, fresh=not state.born),)


def _enough_time_passed(state: State, ready: int, now: float) -> bool:
    """Whether those that are ready should go on without the others."""
    if not any(state.at(Stage.STARTING)):
        return True
    if not state.born:
        return False  # the workers' own deadline for getting ready is what counts
    return now >= state.round.broken_at + state.limits.replace


def waits_for_replacement(state: State) -> bool:
    """Whether the next round only waits for a worker that is starting, and will do without it in the end."""
    waiting = state.round.status in (Status.BROKEN, Status.PAUSING) and any(state.at(Stage.STARTING))
    if not waiting or not state.born or any(state.at(Stage.RETURNING, Stage.SEATED, Stage.FINISHED)):
        return False
    ready = sum(not worker.leave for _, worker in state.at(Stage.READY))
    return ready >= state.limits.min_workers


def _hunger(state: State, ready: int, now: float) -> State:
    return replace(state, hungry_since=now) if state.hungry_since is None else state


def seating(state: State, ready: dict[str, Worker]) -> tuple[str, ...]:
    """Names in rank order: survivors in their order, newcomers first on the ranks of those who are gone."""
    before = state.round.members
    target = state.target
    survivors = [name for name in before if name in ready]
    newcomers = sorted((name for name in ready if name not in before), key=lambda name: ready[name].number)
    if len(survivors) >= target:
        return tuple(survivors[:target])
    seats: list[str | None] = [name if name in ready else None for name in before]
    room = target - len(survivors)
    for index, name in enumerate(before):
        if seats[index] is None and newcomers and room:
            seats[index] = _take(newcomers, rank=index, ready=ready)
            room -= 1
    return tuple(name for name in seats if name is not None) + tuple(newcomers[:room])


def _take(newcomers: list[str], *, rank: int, ready: dict[str, Worker]) -> str:
    """The newcomer that was started for this rank, else the oldest."""
    found = next((name for name in newcomers if ready[name].rank == rank), newcomers[0])
    newcomers.remove(found)
    return found


def _count_failure(state: State, ready: Iterable[str], now: float) -> tuple[State, bool]:
    """Count the failure of a step now that the survivors have said how far they were; True if it was one too many."""
    cause = state.open_failure
    if cause is None:
        return state, False
    if state.progress > state.failed_step:
        state = replace(state, failures=1, failed_step=state.progress, first_failure=cause)
    else:
        state = replace(state, failures=state.failures + 1)
    state = replace(state, open_failure=None)
    if state.failures < state.limits.failures_per_step:
        return state, False
    assert state.first_failure is not None
    end = causes.step_failed(state.failed_step, state.failures, state.first_failure)
    return ending.begin(state, end, now), True


# Growing and shrinking --------------------------------------------------------------------------------
def _resize(state: State, now: float) -> Outcome:
    """Ask the members to pause where the round should be another one."""
    if state.round.status is not Status.ACTIVE or state.stop_signal or not state.limits.elastic:
        return state, ()
    members = [(name, worker) for name, worker in state.at(Stage.SEATED) if name in state.round.members]
    staying = sum(not worker.leave for _, worker in members)
    newcomers = sum(not worker.leave for _, worker in state.at(Stage.READY))
    reason = ""
    if staying < len(members):
        reason = "leave"
    elif staying > state.target:
        reason = "shrink"
    elif staying < state.target and newcomers:
        if newcomers >= state.target - staying or not any(state.at(Stage.STARTING)):
            reason = "grow"  # else wait for the others that are on their way, and disturb once
    if not reason or len(members) < len(state.round.members):
        return state, ()
    if reason == "leave":
        due = leave_at(state)
        if due is None or now < due:
            return state, ()
    state = state.in_round(status=Status.PAUSING, since=now, broken_at=now)
    return state, (PauseRound(tuple(name for name, _ in members), reason),)


def leave_at(state: State) -> float | None:
    """When those that asked to leave may: at once, or when their replacements have had their time.

    None if nobody asked, or if the job needs them until somebody else has come.
    """
    leavers = [worker.since for _, worker in state.at(Stage.SEATED) if worker.leave]
    rest = sum(not worker.leave for _, worker in state.at(Stage.SEATED, Stage.READY))
    if not leavers or rest < state.limits.min_workers or not state.limits.elastic:
        return None
    return min(leavers) + (state.limits.replace if any(state.at(Stage.STARTING)) else 0.0)


def _send_home(state: State, now: float) -> Outcome:
    """Dismiss those that are to leave, and whom the job does not need any more."""
    if state.round.status is Status.PAUSING:
        return state, ()
    ready = sorted(state.at(Stage.READY), key=lambda item: item[1].number)
    gone = {name for name, worker in ready if worker.leave}
    if state.round.status is Status.ACTIVE:
        seated = sum(1 for _ in state.at(Stage.SEATED, Stage.FINISHED))
        keep = max(0, state.target - seated) + state.limits.spares
        gone |= {name for name, _ in [item for item in ready if item[0] not in gone][keep:]}
    changed = {name: replace(worker, stage=Stage.LEAVING, since=now) for name, worker in ready if name in gone}
    state = state.with_workers(changed) if changed else state
    actions: tuple[Action, ...] = (Dismiss(tuple(changed)),) if changed else ()
    for name, worker in state.at(Stage.STARTING):
        if worker.leave:
            state = state.worker(name, stage=Stage.DOOMED, since=now)
            actions += (KillWorker(name, worker.agent),)
    return state, actions
