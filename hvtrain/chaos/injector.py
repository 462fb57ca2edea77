"""Strikes from inside a worker: the listener of the probe that does what a plan says, each fault as often as it says.

    probe.listen(Injector(plan, run_dir, victim))

At each phase it looks whether a fault is due; whoever gets the claim (see ``registry``) strikes::

    phase --due?--> claim --taken already--> nothing
                      |
                      +--> log --> wait for the others of "at once" --> kill, stop, raise, sleep, ...
"""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import threading
import time
from dataclasses import dataclass
from typing import Protocol

from hvtrain.chaos.phases import COMPUTING, IN_STEPS, SOME_PASS
from hvtrain.chaos.plan import ANY, Fault, Plan
from hvtrain.chaos.registry import Claim, Registry
from hvtrain.errors import RoundBroken

log = logging.getLogger(__name__)

HANG_SECONDS = 3600.0
"""How long a hang lasts if nobody ends it."""

AT_ONCE_SECONDS = 2.0
"""The ranks of a list wait so long for each other, so that all of them go at the same moment."""


class Victim(Protocol):
    """What a plan must know of the worker that it strikes, and what it cannot do to it without help.

    ``step`` counts committed steps: 39 while step 40 is computed, 40 from the phase committed on. ``round`` is the one
    that the worker is in or, between two, the one that it will be in at the earliest; so it is 2 for the
    replacement of a worker that was lost in round 1. ``rank`` and ``size`` are those of that round, as far as they are
    known; before the first round the provisional ones.
    """

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def step(self) -> int: ...
    @property
    def round(self) -> int: ...

    def cut(self) -> None:
        """Shut this worker's network connections to the other workers."""

    def leave(self) -> None:
        """Ask to leave at the next step boundary."""


class FaultOnPurpose(RuntimeError):
    """What ``raise`` raises. It stands for an exception of user code, so it is none of hvtrain's own errors."""


@dataclass
class _Order:
    """A fault that still may strike here; ``last`` is the (round, step) of its last strike by this process."""

    index: int
    fault: Fault
    number: int = 0
    last: tuple[int, int] | None = None


@dataclass
class _Slowness:
    """``seconds`` more in ``phase`` of every step before ``end``; ``slept`` is the last (round, step) that had it."""

    phase: str
    seconds: float
    end: int
    slept: tuple[int, int] | None = None


class Injector:
    """Listens to one worker's probe. Its random faults are not its business; see ``storm``.

    Raises, when called, what the plan says (FaultOnPurpose, RoundBroken), and EnvironmentNotReady where a strike
    cannot be written down.
    """

    def __init__(self, plan: Plan, run_dir: str | os.PathLike[str], victim: Victim):
        self._plan, self._victim = plan, victim
        self._registry = Registry(plan, run_dir)
        self._exactly: dict[tuple[str, int], list[_Order]] = {}  # by phase and step
        self._whenever: dict[str, list[_Order]] = {}  # by phase
        self._slow: list[_Slowness] = []
        self._lock = threading.Lock()  # checkpoints are written by a thread of their own, stages compute in theirs
        for index, fault in enumerate(plan.faults):
            if fault.every is not None:
                continue
            order = _Order(index, fault)
            if fault.at in IN_STEPS and fault.step is not None:
                self._exactly.setdefault((fault.at, fault.step), []).append(order)
            else:
                self._whenever.setdefault(fault.at, []).append(order)

    def __call__(self, phase: str) -> None:
        step = self._victim.step + (phase in COMPUTING)
        for orders in (self._exactly.get((phase, step)), self._whenever.get(phase)):
            for order in tuple(orders or ()):
                claim = self._claim(order, orders, phase, step)
                if claim is not None:
                    self._strike(order, claim)
        if self._slow:
            self._lag(phase, step)

    def _claim(self, order: _Order, orders: list[_Order], phase: str, step: int) -> Claim | None:
        fault, victim, now = order.fault, self._victim, (self._victim.round, step)
        if victim.round < (fault.round or 1) or step < (fault.step or 0) or order.last == now:
            return None
        whom = self._whom(order, phase)
        if whom is None:
            return None
        with self._lock:
            if order.last == now or order not in orders:  # another thread has just been here
                return None
            while order.number < fault.times:
                claim = self._registry.claim(order.index, order.number, whom, rank=victim.rank, pid=os.getpid(),
                                             step=step, phase=phase, round=victim.round)
                if claim is not None:
                    order.last = now
                    return claim
                order.number += 1
            # A rank of a list may become another one's when the world shrinks: what is used up for the one
            # is not for the other.
            if fault.ranks is None:
                orders.remove(order)
            order.number = 0
        return None

    def _whom(self, order: _Order, phase: str) -> int | str | None:
        """Under which name this worker may claim the strike; None if it is not the one."""
        ranks, rank = order.fault.ranks, self._victim.rank
        if ranks is not None:
            return rank if rank in ranks else None
        if phase in SOME_PASS:
            return ANY
        chosen = int(_draw(self._plan.seed, order.index) * max(1, self._victim.size))
        return ANY if rank == chosen else None

    # Striking ------------------------------------------------------------------------------------------
    def _strike(self, order: _Order, claim: Claim) -> None:
        title = self._plan.title(order.index)
        log.warning("chaos: %s strikes rank %d in %s, step %d, round %d", title, claim.rank, claim.phase, claim.step,
                    claim.round)
        self._gather(order.fault, claim)
        kind = order.fault.kind
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif kind == "raise":
            raise FaultOnPurpose(f"a fault on purpose: {title}")
        elif kind == "fail":
            raise RoundBroken(f"a reduction has failed on purpose: {title}")
        elif kind == "hang":
            time.sleep(HANG_SECONDS)
        elif kind == "slow":
            self._slow_down(order.fault, claim)
        elif kind == "cut":
            self._victim.cut()
        elif kind == "leave":
            self._victim.leave()

    def _gather(self, fault: Fault, claim: Claim) -> None:
        """Wait until all ranks of a list have claimed theirs, or are clearly not going to."""
        others = [rank for rank in fault.ranks or [] if rank != claim.rank]
        deadline = time.monotonic() + AT_ONCE_SECONDS
        while time.monotonic() < deadline:
            if all(self._registry.taken(claim.fault, claim.number, rank) for rank in others):
                return
            time.sleep(0.001)

    def _slow_down(self, fault: Fault, claim: Claim) -> None:
        assert fault.seconds is not None
        if claim.phase in IN_STEPS:
            self._slow.append(_Slowness(claim.phase, fault.seconds.seconds, claim.step + (fault.steps or 1)))
        else:
            time.sleep(fault.seconds.seconds)

    def _lag(self, phase: str, step: int) -> None:
        now, seconds = (self._victim.round, step), 0.0
        with self._lock:
            for slowness in tuple(self._slow):
                if step >= slowness.end:
                    self._slow.remove(slowness)
                elif phase == slowness.phase and slowness.slept != now:  # a step passes forward once per micro-batch
                    slowness.slept = now
                    seconds += slowness.seconds
        if seconds:
            time.sleep(seconds)


def _draw(*parts: object) -> float:
    """A number in [0, 1) that depends on ``parts`` alone, the same in every worker."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
