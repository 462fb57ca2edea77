"""What the loss of a worker or an agent means for the round and for the job."""

from __future__ import annotations

from hvtrain.control import causes, ending, newcomers
from hvtrain.control.causes import Cause
from hvtrain.control.events import Action, CutRound, Dismiss, DropAgent, KillWorker, ReportLoss
from hvtrain.control.roster import FIRST_REST, FORM_ATTEMPTS, HOUR, Phase, Stage, State, Status, replace
from hvtrain.errors import ExitCode

Outcome = tuple[State, tuple[Action, ...]]


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
    state = state.worker(name, stage=Stage.DOOMED, since=now)
    if name in state.round.members:
        until = max(worker.last_beat + state.limits.heartbeat, state.round.leases.get(worker.agent, 0.0))
        state = state.in_round(leases={**state.round.leases, worker.agent: until})
    if state.phase is not Phase.OPEN:
        return ending.begin(state, cause, now), actions  # while the job ends, a better account may still come
    state = replace(state, losses=tuple(t for t in state.losses if now - t < HOUR) + (now,), unformed=0, retry_at=0.0)
    limit = state.limits.losses_per_hour
    if not state.limits.elastic or (own_fault and not state.born):
        return ending.begin(state, cause, now), actions
    if limit is not None and len(state.losses) > limit:
        return ending.begin(state, causes.too_many_losses(len(state.losses), cause), now), actions
    if worker.stage is Stage.SEATED and state.running:
        failure = cause if own_fault or state.round.status is not Status.FORMING else None
        state, more = break_round(state, cause.reason, now, failure=failure)
        return state, actions + more
    if worker.stage is Stage.STARTING:
        return _false_start(state, worker.agent, cause, now, own_fault=own_fault), actions
    if name in state.round.members and (own_fault or state.open_failure is not None):
        state = _note(state, cause)  # it may be the one whom the others lost their connection to
    return state, actions


def failed(state: State, name: str, cause: Cause, now: float) -> Outcome:
    """The worker has ended by an exception of its own."""
    worker = state.workers[name]
    # A newcomer's host may lack what the others have; whoever trains already is not to suffer for it.
    passing = cause.passing or (worker.stage is Stage.STARTING and cause.exit_code == ExitCode.ENVIRONMENT)
    if not state.limits.elastic or not passing or not state.born or state.phase is not Phase.OPEN:
        state = state.worker(name, stage=Stage.DOOMED, since=now)
        return ending.begin(state, cause, now), ()
    return lose(state, name, cause, now, own_fault=True)


def break_round(state: State, reason: str, now: float, *, failure: Cause | None) -> Outcome:
    """End the round: its members come back for another one. ``failure`` is what the step failed of."""
    members = [(name, state.workers[name]) for name in state.round.members if name in state.workers]
    state = state.with_workers({
        name: replace(worker, stage=Stage.RETURNING, since=now, waiting=False, ticked=now)
        for name, worker in members if worker.stage in (Stage.SEATED, Stage.FINISHED)})
    state = state.in_round(status=Status.BROKEN, since=now, broken_at=now)
    told = tuple(name for name, worker in members if worker.stage in (Stage.SEATED, Stage.FINISHED, Stage.READY))
    state = _note(state, failure) if failure is not None else state
    return state, (CutRound(state.round.number, told, reason),)


def not_formed(state: State, reason: str, now: float) -> Outcome:
    """The round could not be formed, though nobody was lost.

    It is tried again at once, in case somebody's loss was noticed by its peers first; after that no sooner than
    comm.timeout after the attempt before, however soon that failed: a network needs time to come back. After the last
    attempt newcomers are left out; without any, or without them too few, that is the end of the job.
    """
    began = state.round.since
    state = replace(state, unformed=state.unformed + 1, trouble=reason)
    if state.unformed >= FORM_ATTEMPTS:
        hosts = newcomers.hosts_to_leave_out(state)
        if not hosts:
            return ending.begin(state, causes.unformed(state.unformed, reason), now), ()
        state, actions = newcomers.leave_out(state, hosts, now)
        state, more = break_round(replace(state, unformed=0, retry_at=0.0), reason, now, failure=None)
        return state, actions + more
    state = replace(state, retry_at=began + state.limits.form if state.unformed > 1 else 0.0)
    return break_round(state, reason, now, failure=None)


def lose_agent(state: State, name: str, now: float, *, ended: bool = False) -> Outcome:
    """An agent is gone (``ended``: that was seen), or does not answer; so are its workers, or they are to go."""
    theirs_too = any(n in state.round.members for n, worker in state.workers.items() if worker.agent == name)
    if ended and (theirs_too or name in state.round.leases):
        state = state.in_round(left=True)
    agent = state.agents.get(name)
    if agent is None:
        return state, ()
    cause = causes.lost_agent(name, agent.host)
    actions: tuple[Action, ...] = (DropAgent(name),)
    state = replace(state, agents=state.agents.without(name))
    theirs = [n for n, worker in state.workers.items() if worker.agent == name]
    if theirs:  # who of them is still alive has lost its parent, or is about to
        actions += (Dismiss(tuple(theirs)),)
    for worker in theirs:
        if state.workers[worker].taking_part:
            state, more = lose(state, worker, cause, now)
            actions += more
        state = state.without(worker)
    return state, actions


def _note(state: State, failure: Cause) -> State:
    return replace(state, open_failure=causes.heavier(state.open_failure, failure))


def _false_start(state: State, agent: str, cause: Cause, now: float, *, own_fault: bool) -> State:
    """A worker was lost before it was ready: its agent tries again at once, then at longer and longer intervals."""
    if own_fault:
        state = replace(state, false_starts=state.false_starts + 1,
                        first_false_start=causes.heavier(state.first_false_start, cause))
    if agent not in state.agents:
        return state
    count = state.agents[agent].false_starts + 1
    rest = min(state.limits.start, FIRST_REST * 2.0 ** min(count - 2, 20)) if count > 1 else 0.0
    return state.agent(agent, false_starts=count, rest_until=now + rest if rest else 0.0)
