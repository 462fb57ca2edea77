"""The end of a job: who saves, who is told to go, and who is killed because it does not."""

from __future__ import annotations

from hvtrain.control import causes
from hvtrain.control.causes import Cause
from hvtrain.control.events import Action, Dismiss, EndJob, KillWorker
from hvtrain.control.roster import REPLACE_FLOOR, Phase, Stage, State, replace
from hvtrain.errors import ExitCode

Outcome = tuple[State, tuple[Action, ...]]

SALVAGERS = (Stage.READY, Stage.SEATED, Stage.RETURNING, Stage.FINISHED)


def begin(state: State, cause: Cause, now: float) -> State:
    """Enter ENDING, or let a better cause replace the known one while its verdict is awaited."""
    if state.phase is not Phase.ENDING or state.cause is None:
        return replace(state, phase=Phase.ENDING, since=now, cause=cause)
    if state.cause.exit_code == ExitCode.DONE:
        return state
    return replace(state, cause=causes.heavier(state.cause, cause))


def hasten(state: State, now: float) -> State:
    """A person insists: what has not ended by now is killed."""
    return state if state.killed else replace(state, since=now - state.limits.stop,
                                              limits=replace(state.limits, tail=False))


def in_tail(state: State) -> bool:
    """Whether the training is over, and the workers are at the rest of their script."""
    return (state.limits.tail and state.phase is Phase.ENDING and not state.killed and state.cause is not None
            and state.cause.exit_code == ExitCode.DONE)


def fail(state: State, cause: Cause, now: float) -> State:
    """The rest of a worker's script has failed, which is how the job ends; the other workers are given time to end."""
    return replace(state, cause=cause, since=now)


def late_at(state: State) -> float:
    """When workers that are still there are late. The rest of a script may take as long as they give signs of life."""
    at = state.since + state.limits.stop
    if in_tail(state):
        at = max([at, *(worker.last_beat + state.limits.stop for worker in state.workers.values())])
    return at


def better_known_at(state: State) -> float:
    """When a cause that is only an echo of another one is not waited for any longer: elastic.replace_timeout, if that is
    told."""
    limit = state.limits.replace
    return state.since + (REPLACE_FLOOR if limit is None else limit)


def settle(state: State, now: float) -> Outcome:
    """What is due in ENDING: dismissing the workers, killing the late, ending the job."""
    assert state.cause is not None
    if not state.workers:
        return _over(state)
    actions: tuple[Action, ...] = ()
    known = state.cause.weight >= causes.OBSERVED or now >= better_known_at(state)
    if not state.dismissed and (known or not state.workers.count(Stage.SEATED, Stage.RETURNING)):
        state, actions = _dismiss(state)
    if not state.killed and now >= late_at(state):
        if in_tail(state):
            state = fail(state, causes.silent_tail(state.limits.stop), now)
        state = replace(state, killed=True, since=now - state.limits.stop)
        actions += tuple(KillWorker(name, worker.agent) for name, worker in state.workers.items())
    elif state.killed and now >= state.since + 2 * state.limits.stop:
        return _over(state)  # not even SIGKILL was confirmed: the agents' own end will do it
    return state, actions


def _dismiss(state: State) -> Outcome:
    holders = [(-worker.step, worker.rank, name) for name, worker in state.at(*SALVAGERS) if worker.step >= 0]
    salvager = min(holders)[2] if holders and _worth_saving(state) else None
    told = tuple(name for name, _ in state.at(*SALVAGERS, Stage.LEAVING))
    actions: tuple[Action, ...] = (Dismiss(told, salvager),) if told else ()
    # Who builds its model still has nothing to save.
    actions += tuple(KillWorker(name, worker.agent) for name, worker in state.at(Stage.STARTING))
    return replace(state, dismissed=True), actions


def _worth_saving(state: State) -> bool:
    assert state.cause is not None
    saved = any(worker.rank == 0 for _, worker in state.at(Stage.FINISHED))  # before it says so, rank 0 saves
    return state.cause.salvage and not saved and state.cause.exit_code != ExitCode.DONE


def _over(state: State) -> Outcome:
    assert state.cause is not None
    return replace(state, phase=Phase.OVER), (EndJob(state.cause),)
