"""Why a worker was lost or a job ended: the words a user reads first, the exit code, and how much the account is worth.

When one worker fails, the others see only that a peer is gone. ``weight`` orders the accounts: a worker's own
exception outweighs a death seen from outside, and that outweighs an echo ("connection closed by peer").
"""

from __future__ import annotations

import signal as signals
from dataclasses import dataclass
from typing import Sequence

from hvtrain.errors import ExitCode

ECHO, OBSERVED, CERTAIN = 1, 2, 3

CRASHES = {signals.SIGSEGV, signals.SIGBUS, signals.SIGABRT, signals.SIGILL, signals.SIGFPE}
"""Signals by which a process ends through its own fault, so that its successor is likely to do the same."""

NAMED_HOSTS, TROUBLE_CHARS = 3, 300
"""Of the hosts that somebody does not reach, so many are named; of what is said of it, so many characters are told."""

OUTSIDE = {"killed", "silent", "agent_lost"}
"""Kinds of losses that come from outside as a rule: a host that goes, a hand, a fault plan; but also want of memory."""


@dataclass(frozen=True)
class Cause:
    """``kind`` is one word for events.jsonl; ``salvage``: whether the survivors' last step is worth saving."""

    exit_code: int
    reason: str
    traceback: str = ""
    weight: int = CERTAIN
    step: int | None = None
    rank: int | None = None
    salvage: bool = True
    kind: str = "failed"

    @property
    def passing(self) -> bool:
        """Whether the same step may well succeed in another attempt."""
        return self.exit_code in (ExitCode.USER_CODE, ExitCode.LOST_WORKERS, ExitCode.STALLED)


def heavier(known: Cause | None, other: Cause) -> Cause:
    """The better account of the two; the first one if they are worth the same."""
    return known if known is not None and known.weight >= other.weight else other


def done() -> Cause:
    return Cause(ExitCode.DONE, "done")


def stopped(signal: int, saved: bool) -> Cause:
    name = _name(signal)
    code = ExitCode.INTERRUPTED if signal == signals.SIGINT else ExitCode.TERMINATED
    how = "after a checkpoint" if saved else "before the workers could agree on a last checkpoint"
    return Cause(code, f"stopped by {name} {how}", salvage=True, kind="stopped")


def lost_worker(rank: int, host: str, code: int, signal: int, step: int) -> Cause:
    how = f"was killed by {_name(signal)}" if signal else f"ended by itself with exit status {code}"
    kind = "exited" if not signal else "crashed" if signal in CRASHES else "killed"
    hint = " (if nobody killed it, look for the kernel's out-of-memory message)" if signal == signals.SIGKILL else ""
    return Cause(ExitCode.LOST_WORKERS, f"the worker with rank {rank} on {host} {how}{hint}",
                 weight=OBSERVED, rank=rank, step=step, kind=kind)


def lost_tail(rank: int, host: str, code: int, signal: int, step: int) -> Cause:
    """A worker was lost in what its script does after the training."""
    how = f"was killed by {_name(signal)}" if signal else f"ended with exit status {code}"
    return Cause(ExitCode.LOST_WORKERS, f"the training is complete, but the worker with rank {rank} on {host} {how} before "
                 "its script had ended", weight=OBSERVED, rank=rank, step=step, salvage=False, kind="killed")


def silent_tail(seconds: float) -> Cause:
    """Workers stand still in what their script does after the training."""
    return Cause(ExitCode.STALLED, "the training is complete, but the rest of the script has given no sign of life for "
                 f"launch.stop_timeout ({seconds:g} s)", weight=OBSERVED, salvage=False, kind="silent")


def lost_agent(agent: str, host: str) -> Cause:
    return Cause(ExitCode.LOST_WORKERS, f"the agent {agent} on {host} is gone, and its workers with it",
                 weight=OBSERVED, kind="agent_lost")


def too_few_slots(found: int, wanted: int, seconds: float) -> Cause:
    return Cause(ExitCode.ENVIRONMENT, f"only {found} of {wanted} slots joined within launch.start_timeout "
                 f"({seconds:g} s)", salvage=False)


def too_few_workers(found: int, least: int, seconds: float) -> Cause:
    return Cause(ExitCode.LOST_WORKERS, f"only {found} of at least {least} workers (elastic.min_workers) are left, "
                 f"and no others came within launch.start_timeout ({seconds:g} s)", weight=OBSERVED)


def not_ready(ranks: list[int], seconds: float) -> Cause:
    who = ", ".join(map(str, sorted(ranks)))
    return Cause(ExitCode.STALLED, f"rank {who} did not build its model and data within launch.start_timeout "
                 f"({seconds:g} s)", rank=min(ranks), salvage=False, kind="not_ready")


def lost_connection(rank: int, step: int) -> Cause:
    return Cause(ExitCode.LOST_WORKERS, f"rank {rank} lost its connection to another rank, though no worker was lost",
                 weight=ECHO, rank=rank, step=step, kind="connection")


def silent(rank: int, seconds: float, step: int) -> Cause:
    return Cause(ExitCode.STALLED, f"rank {rank} has given no sign of life for elastic.heartbeat_timeout "
                 f"({seconds:g} s)", weight=OBSERVED, rank=rank, step=step, kind="silent")


def stuck(rank: int, seconds: float, step: int) -> Cause:
    return Cause(ExitCode.STALLED, f"rank {rank} is alive but has got nothing done for {seconds:.3g} s "
                 "(elastic.step_timeout), and it does not wait for another one; its log has the stacks of its threads",
                 weight=OBSERVED, rank=rank, step=step, kind="stuck")


def no_progress(seconds: float, step: int) -> Cause:
    return Cause(ExitCode.STALLED, f"all workers have waited for each other for {seconds:.3g} s (elastic.step_timeout) "
                 f"after step {step}: the network between them, or ranks that take part in different operations",
                 weight=OBSERVED, step=step, kind="no_progress")


def not_connected(rank: int, trouble: str) -> str:
    """What is said of an attempt to form a round that a member has given up; ``trouble``: in its own words."""
    return f"rank {rank} could not connect to the others" + (f": {trouble[:TROUBLE_CHARS]}" if trouble else "")


def unformed(attempts: int, trouble: str) -> Cause:
    return Cause(ExitCode.STALLED, f"the workers could not connect to each other in {attempts} attempts, though none "
                 f"of them was lost; their logs say which connection failed. The last attempt: {trouble}",
                 weight=OBSERVED)


_APART_REMEDY = ("Let the hosts connect to all TCP ports of each other, or name the network that joins them: "
                 "launch.interface=NAME")


def left_out(host: str, others: Sequence[str], attempts: int, trouble: str) -> str:
    """What people are told of a ``host`` whose newcomers did not reach the workers on these ``others``."""
    named = ", ".join(other for other in others[:NAMED_HOSTS]) + (", ..." if len(others) > NAMED_HOSTS else "")
    return (f"a new worker on {host} and those that train on {named} could not connect to each other in {attempts} "
            f"attempts, so the job goes on without it ({trouble}). {_APART_REMEDY}")


def left_out_before(host: str, times: int) -> str:
    """What an agent is told that comes from a host with which there was no connecting too often."""
    return (f"new workers on {host} and those of the job could not connect to each other {times} times within an hour, "
            f"so none is tried until that hour is over. {_APART_REMEDY}")


def too_many_losses(count: int, last: Cause) -> Cause:
    return Cause(last.exit_code, f"{count} workers were lost within an hour, more than elastic.max_losses_per_hour "
                 f"allows; the last: {last.reason}", last.traceback, weight=CERTAIN, rank=last.rank, step=last.step)


def step_failed(step: int, failures: int, first: Cause, *, outside: int, for_one: int) -> Cause:
    """``outside`` of the ``failures`` were losses from outside, of which so many count ``for_one``."""
    how = f", {outside} by losses from outside, of which {for_one} count as one failure" if outside else ""
    return Cause(first.exit_code, f"step {step + 1} failed {failures} times{how} (elastic.max_failures_per_step). The first "
                 f"failure: {first.reason}", first.traceback, weight=CERTAIN, rank=first.rank, step=step)


def false_starts(count: int, first: Cause) -> Cause:
    return Cause(first.exit_code, f"{count} workers in a row failed before they were ready, and the job cannot go on "
                 f"without them. The first failure: {first.reason}", first.traceback, weight=CERTAIN, rank=first.rank)


def _name(signal: int) -> str:
    try:
        return signals.Signals(signal).name
    except ValueError:
        return f"signal {signal}"
