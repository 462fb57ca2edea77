"""Putting rounds together: starting workers, forming a round when it is time to, growing and shrinking.

::

    round 1:  0:w0  1:w1  2:w2  3:w3         w1 dies, w4 is started in its place
    round 2:  0:w0  1:w4  2:w2  3:w3         in time: the replacement takes the dead one's rank
    round 2:  0:w0  1:w2  2:w3               late: the survivors close up and keep their order
    round 3:  0:w0  1:w2  2:w3  3:w4         and it joins at a later step
"""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import count
from typing import Iterator

from hvtrain.control import causes, ending, losing, seating
from hvtrain.control.crew import HERE
from hvtrain.control.events import Action, Dismiss, FormRound, KillWorker, PauseRound, StartWorker
from hvtrain.control.roster import OUTSIDE_LOSSES, Phase, Stage, State, Status, Worker, replace

Outcome = tuple[State, tuple[Action, ...]]


def settle(state: State, now: float) -> Outcome:
    """Whatever can be done now towards the round that the job should have."""
    if state.phase is Phase.GATHERING:
        if not state.agents or state.agents.slots < state.wanted:
            return state, ()
        state = replace(state, phase=Phase.OPEN, since=now)
    actions: tuple[Action, ...] = ()
    for part in (_call_off, _fill, _call_back, _form, _resize, _send_home):
        state, more = part(state, now)
        actions += more
        if state.phase is not Phase.OPEN:
            break
    return state, actions


# Starting workers -------------------------------------------------------------------------------------
def _call_off(state: State, now: float) -> Outcome:
    """Who is to leave before it is ready has nothing that could be lost."""
    if not _leavers(state, Stage.STARTING):
        return state, ()
    gone = {name: worker for name, worker in state.at(Stage.STARTING) if worker.leave}
    state = state.with_workers({name: replace(worker, stage=Stage.DOOMED, since=now) for name, worker in gone.items()})
    return state, tuple(KillWorker(name, worker.agent) for name, worker in gone.items())


def _fill(state: State, now: float) -> Outcome:
    if state.stop_signal or (state.next_number and not state.limits.elastic):
        return state, ()
    here = state.workers.staying(*HERE)
    missing = min(state.target + state.limits.spares, state.agents.slots) - here
    if missing <= 0:
        return state, ()
    ranks, locals_ = {worker.rank for _, worker in state.at(*HERE)}, defaultdict(set)
    for _, worker in state.at(*HERE):
        locals_[state.agents[worker.agent].host].add(worker.local)
    started: dict[str, Worker] = {}
    actions: tuple[Action, ...] = ()
    for number, agent in zip(range(state.next_number, state.next_number + missing), _free_slots(state, now)):
        # The rank of a lost member, else the next one: so a replacement writes on in the log of whom it replaces.
        rank, local = _lowest_free(ranks), _lowest_free(locals_[state.agents[agent].host])
        started[f"w{number}"] = Worker(agent, number, rank, since=now, local=local)
        actions += (StartWorker(f"w{number}", agent, rank, local),)
    return replace(state.with_workers(started), next_number=state.next_number + len(started)), actions


def _free_slots(state: State, now: float) -> Iterator[str]:
    """The agent of each slot that can take a worker now.

    By name, not by who came first: the same job has the same ranks on the same hosts each time.
    """
    taken = Counter(worker.agent for _, worker in state.at(*HERE) if not worker.leave)
    for name in sorted(state.agents):
        agent = state.agents[name]
        if agent.open and agent.rest_until <= now:
            for _ in range(agent.slots - taken[name]):
                yield name


def _lowest_free(used: set[int]) -> int:
    """The lowest number that is not in ``used``; it is used from now on."""
    number = next(number for number in count() if number not in used)
    used.add(number)
    return number


# Forming a round --------------------------------------------------------------------------------------
def _call_back(state: State, now: float) -> Outcome:
    """Where some members have finished while others could not: have them all come back for another round."""
    crew = state.workers
    if state.round.status is not Status.PAUSING or crew.count(Stage.SEATED) or not crew.count(Stage.FINISHED):
        return state, ()
    if not any(name in state.round.members for name, _ in state.at(Stage.READY)):
        return state, ()  # all have finished
    return losing.break_round(state, "some ranks have finished, others could not", now, failure=None)


def _form(state: State, now: float) -> Outcome:
    if not _between_rounds(state):
        return state, ()
    state, failed = _count_failure(state, now)
    if failed:
        return state, ()
    due = form_at(state)
    if due is None:
        return _hunger(state, now), ()
    state = replace(state, hungry_since=None)
    if now < due:
        return state, ()
    members = seating.seats(state)
    number = state.round.number + 1
    state = state.with_workers({name: replace(state.workers[name], stage=Stage.SEATED, rank=rank, since=now,
                                              last_beat=now, ticked=now, waiting=False)
                                for rank, name in enumerate(members)})
    state = state.in_round(number=number, status=Status.FORMING, since=now, members=members, formed=frozenset(),
                           moved=now, left=False, leases={})
    hosts = tuple((name, state.agents[state.workers[name].agent].host) for name in members)
    return state, (FormRound(number, hosts, fresh=not state.born),)


def _between_rounds(state: State) -> bool:
    """Whether everybody who was in the last round has come back, or is lost."""
    status, crew = state.round.status, state.workers
    if status in (Status.FORMING, Status.ACTIVE) or crew.count(Stage.RETURNING):
        return False
    return status is not Status.PAUSING or not crew.count(Stage.SEATED, Stage.FINISHED)


def form_at(state: State) -> float | None:
    """When the next round is formed if nothing else happens; None if it takes more than time."""
    due = _ready_at(state)
    return None if due is None else max(due, state.round.over_at)


def _ready_at(state: State) -> float | None:
    """The same, were there no members of the last round that may still take steps."""
    if not _between_rounds(state) or state.workers.count(Stage.READY) < state.least:
        return None
    expected = state.workers.count(Stage.STARTING) and not state.stop_signal
    if not expected or state.workers.staying(Stage.READY) >= state.target:
        return state.retry_at
    if not state.born or all(worker.step < 0 for _, worker in state.at(Stage.READY)):
        return None  # nobody could train on meanwhile: the workers' own deadline for getting ready is what counts
    if state.round.status is Status.PAUSING:
        return state.retry_at  # whoever was worth waiting for has been waited for before the pause
    return max(state.retry_at, state.round.broken_at + state.replace_limit)


def _hunger(state: State, now: float) -> State:
    """There are too few for a round. Is anybody on the way?"""
    if state.workers.count(Stage.STARTING):
        return replace(state, hungry_since=None)
    if state.stop_signal:
        return ending.begin(state, causes.stopped(state.stop_signal, saved=False), now)
    if state.false_starts >= state.limits.failures_per_step:
        assert state.first_false_start is not None
        return ending.begin(state, causes.false_starts(state.false_starts, state.first_false_start), now)
    return replace(state, hungry_since=now) if state.hungry_since is None else state


def _count_failure(state: State, now: float) -> tuple[State, bool]:
    """Count the failure of a step now that the survivors have said how far they were; True if it was one too many."""
    cause = state.open_failure
    if cause is None:
        return state, False
    if state.progress > state.failed_step:
        state = replace(state, failed_step=state.progress, failures=0, outside=0, first_failure=None)
    failures, outside = state.failures + 1, state.outside + (cause.kind in causes.OUTSIDE)
    first = causes.heavier(state.first_failure, cause)
    state = replace(state, failures=failures, outside=outside, first_failure=first, open_failure=None)
    if failures - outside + outside // OUTSIDE_LOSSES < state.limits.failures_per_step:
        return state, False
    cause = causes.step_failed(state.failed_step, failures, first, outside=outside, for_one=OUTSIDE_LOSSES)
    return ending.begin(state, cause, now), True


# Growing and shrinking --------------------------------------------------------------------------------
def _resize(state: State, now: float) -> Outcome:
    """Ask the members to pause where the round should be another one."""
    if not _can_pause(state):
        return state, ()
    crew = state.workers
    members, staying, newcomers = crew.count(Stage.SEATED), crew.staying(Stage.SEATED), crew.staying(Stage.READY)
    reason = ""
    if staying < members:
        due = leave_at(state)
        reason = "leave" if due is not None and now >= due else ""
    elif staying > state.target:
        reason = "shrink"
    elif staying < state.target and newcomers:
        if newcomers >= state.target - staying or not crew.count(Stage.STARTING):
            reason = "grow"  # else wait for the others that are on their way, and disturb once
    if not reason:
        return state, ()
    state = state.in_round(status=Status.PAUSING, moved=now)
    return state, (PauseRound(state.round.members, reason),)


def _can_pause(state: State) -> bool:
    """Whether there is a round that can be changed, and none of its members has finished."""
    return (state.round.status is Status.ACTIVE and state.limits.elastic and not state.stop_signal
            and state.workers.count(Stage.SEATED) == len(state.round.members))


def leave_at(state: State) -> float | None:
    """When those that asked to leave may: at once, or when their replacements have had their time.

    None if nobody asked, or if the job needs them until somebody else has come.
    """
    crew = state.workers
    if crew.staying(Stage.SEATED) == crew.count(Stage.SEATED) or not _can_pause(state):
        return None
    others = crew.staying(Stage.SEATED, Stage.READY)
    if others < state.limits.min_workers:
        return None
    asked = min(worker.since for _, worker in state.at(Stage.SEATED) if worker.leave)
    return asked + (state.replace_limit if others < state.target and crew.count(Stage.STARTING) else 0.0)


def _send_home(state: State, now: float) -> Outcome:
    """Dismiss those that are to leave, and whom the job does not need any more.

    Not before the next round is active: until then they may be the only ones who know the latest step.
    """
    crew = state.workers
    gone: list[str] = []
    if state.round.status is Status.ACTIVE or not state.born:
        gone += [name for name, worker in state.at(Stage.READY) if worker.leave] if _leavers(state, Stage.READY) else []
    if state.round.status is Status.ACTIVE:
        keep = max(0, state.target - crew.staying(Stage.SEATED, Stage.FINISHED)) + state.limits.spares
        if crew.staying(Stage.READY) > keep:
            gone += [name for name, worker in state.at(Stage.READY) if not worker.leave][keep:]
    actions: tuple[Action, ...] = (Dismiss(tuple(gone)),) if gone else ()
    state = state.with_workers({name: replace(crew[name], stage=Stage.LEAVING, since=now) for name in gone})
    return state, actions


def _leavers(state: State, stage: Stage) -> int:
    return state.workers.count(stage) - state.workers.staying(stage)
