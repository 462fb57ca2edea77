"""Why a job ended: the words a user reads first, the exit code, and how much the account is worth.

When one worker fails, the others see only that a peer is gone. ``weight`` orders the accounts: a worker's own
exception outweighs a death seen from outside, and that outweighs an echo ("connection closed by peer").
"""

from __future__ import annotations

import signal as signals
from dataclasses import dataclass

from hvtrain.errors import ExitCode

ECHO, OBSERVED, CERTAIN = 1, 2, 3


@dataclass(frozen=True)
class Cause:
    exit_code: int
    reason: str
    traceback: str = ""
    weight: int = CERTAIN
    step: int | None = None
    rank: int | None = None
    salvage: bool = True  # whether the survivors' last committed step is worth saving
    silent: tuple[int, ...] = ()  # ranks that do not answer


def done() -> Cause:
    return Cause(ExitCode.DONE, "done")


def stopped(signal: int, saved: bool) -> Cause:
    name = _name(signal)
    code = ExitCode.INTERRUPTED if signal == signals.SIGINT else ExitCode.TERMINATED
    how = "after a checkpoint" if saved else "before the workers could agree on a last checkpoint"
    return Cause(code, f"stopped by {name} {how}", salvage=True)


def lost_worker(rank: int, host: str, code: int, signal: int, step: int) -> Cause:
    how = f"was killed by {_name(signal)}" if signal else f"ended by itself with exit status {code}"
    hint = " (if nobody killed it, look for the kernel's out-of-memory message)" if signal == signals.SIGKILL else ""
    return Cause(ExitCode.LOST_WORKERS, f"the worker with rank {rank} on {host} {how}{hint}",
                 weight=OBSERVED, rank=rank, step=step)


def lost_agent(agent: str, host: str) -> Cause:
    return Cause(ExitCode.LOST_WORKERS, f"the agent {agent} on {host} is gone, and its workers with it",
                 weight=OBSERVED)


def too_few_slots(found: int, wanted: int, seconds: float) -> Cause:
    return Cause(ExitCode.ENVIRONMENT, f"only {found} of {wanted} slots joined within launch.start_timeout "
                 f"({seconds:g} s)", salvage=False)


def not_ready(ranks: list[int], seconds: float) -> Cause:
    who = ", ".join(map(str, sorted(ranks)))
    return Cause(ExitCode.STALLED, f"rank {who} did not build its model and data within launch.start_timeout "
                 f"({seconds:g} s)", salvage=False)


def stalled(ranks: list[int], seconds: float) -> Cause:
    who = ", ".join(map(str, sorted(ranks)))
    return Cause(ExitCode.STALLED, f"rank {who} has given no sign of life for elastic.heartbeat_timeout "
                 f"({seconds:g} s)", rank=min(ranks), silent=tuple(ranks))


def _name(signal: int) -> str:
    try:
        return signals.Signals(signal).name
    except ValueError:
        return f"signal {signal}"
