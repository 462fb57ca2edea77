"""What ``hvtrain ps`` and ``hvtrain scale`` are told about a job."""

from __future__ import annotations

from typing import Mapping

from hvtrain.control import messages
from hvtrain.control.roster import Agent, Phase, Stage, State, Status, Worker

_STATES = {Stage.READY: "standing by", Stage.RETURNING: "recovering", Stage.DOOMED: "being killed"}
_PRESENT = (Stage.READY, Stage.SEATED, Stage.RETURNING, Stage.FINISHED)
_SEATED = {Status.FORMING: "connecting", Status.PAUSING: "pausing"}


def describe(state: State, pids: Mapping[str, int]) -> messages.Overview:
    """The job as one object: who is there, in which round, at which step.

    ``slot`` counts the workers of a host; ``rank`` and ``round`` are None for who is in no round, ``pid`` for who has
    not said it yet.
    """
    agents = [{"agent": name, "host": agent.host, "slots": agent.slots, "pid": pids.get(name),
               "state": _presence(agent),
               "workers": sum(worker.agent == name for worker in state.workers.values())}
              for name, agent in sorted(state.agents.items())]
    workers = []
    for name, worker in state.workers.items():
        seated = name in state.round.members
        agent = state.agents.get(worker.agent)
        workers.append({
            "worker": name, "agent": worker.agent, "host": agent.host if agent else "", "slot": worker.local,
            "pid": pids.get(name), "rank": worker.rank if seated else None,
            "round": state.round.number if seated else None, "step": max(worker.step, 0),
            "state": _standing(state, worker)})
    workers.sort(key=lambda worker: (worker["rank"] is None, worker["rank"] or 0))
    job = {"phase": state.phase.value, "round": state.round.number, "status": state.round.status.value,
           "size": len(present(state)), "target": state.wanted if state.phase is Phase.GATHERING else state.target, "step": state.progress}
    return messages.Overview(job=job, agents=agents, workers=workers)


def present(state: State) -> list[str]:
    """The members of the round that are not lost, and have not left."""
    return [name for name, _ in state.at(*_PRESENT) if name in state.round.members]


def _presence(agent: Agent) -> str:
    """Where an agent stands, in one or two words."""
    if agent.leaving or agent.refused:
        return "leaving" if agent.leaving else "refused"
    return "here" if agent.slots else "standing by"


def company(state: State) -> set[str]:
    """The members of the round, and their agents: a member that has lost its connection may still have one there."""
    members = state.round.members
    return {*members, *(state.workers[name].agent for name in members if name in state.workers)}


def _standing(state: State, worker: Worker) -> str:
    """Where a worker stands, in one or two words."""
    if worker.stage is Stage.SEATED:
        return _SEATED.get(state.round.status, "leaving soon" if worker.leave else "training")
    return _STATES.get(worker.stage, worker.stage.value)


def judge_scale(state: State, workers: int) -> tuple[bool, str]:
    """Whether the job can have so many workers, and what to tell the person who asked."""
    limits = state.limits
    slots = state.agents.slots
    if not limits.elastic:
        return False, "elastic.enabled is false in this job, so its size is fixed"
    if state.phase is not Phase.OPEN or state.stop_signal:
        return False, f"the job is {'stopping' if state.stop_signal else state.phase.value}; its size cannot change now"
    if workers < limits.min_workers:
        return False, f"{workers} is below elastic.min_workers ({limits.min_workers})"
    if limits.max_workers is not None and workers > limits.max_workers:
        return False, f"{workers} is above elastic.max_workers ({limits.max_workers})"
    if workers > slots:
        return False, f"the agents have {slots} slots; for {workers} workers more agents must join first"
    if workers == state.target:
        return True, f"it has {_workers(workers)} already"
    return True, f"from {state.target} to {_workers(workers)}"


def _workers(count: int) -> str:
    return f"{count} worker{'' if count == 1 else 's'}"


def standing_orders(state: State, worker: Worker) -> list[messages.Message]:
    """What a worker has been told that still holds. A seat is not told twice: forming a round has its own deadline."""
    number = state.round.number
    if worker.stage is Stage.LEAVING or (state.phase is Phase.ENDING and state.dismissed):
        return [messages.Dismiss()]
    if worker.stage is Stage.RETURNING:
        return [messages.Cut(round=number, reason="it broke while the coordinator could not be reached")]
    found: list[messages.Message] = []
    if worker.stage is Stage.SEATED and state.round.status is Status.PAUSING:
        found.append(messages.Pause(round=number))
    if state.stop_signal:
        found.append(messages.Stop(signal=state.stop_signal))
    return found
