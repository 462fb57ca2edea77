"""The lease that a worker steps by: never do two halves of a network train as one job.

::

    worker        beat(stamp) ------------------>  coordinator            t0: the stamp, by the worker's clock
                                                   last_beat := now       t1 >= t0
                  <------------------ heard(stamp)
    may commit steps until t0 + 0.9 T              counts it as lost at t1 + T at the earliest
                                                   (T: elastic.heartbeat_timeout)

A worker asks its lease before it applies a step, and waits while it has none. When the coordinator is heard again,
the step goes on where it was, in the same round, unless that has been broken meanwhile.

**Why no two rounds step at the same time.** Let round k be the last one, and say that the coordinator forms round
k+1. It forms a round only when every member of round k has come back, or is lost (``assembling._between_rounds``),
and moreover (``assembling.form_at``)

a. a member of round k is known to have left it: it has said so itself, its process has been reaped, or its agent's
   process was seen to end; or
b. the leases of all members that were lost have run out.

With (a) nobody commits more in round k than the one step that this member may have given its part to before it left:
every step needs a part from every member, and the state of the next round is that of a member with the highest step.
Such a late commit is the last that its worker makes: it waits for the next step's sum until it is cut or its lease
has run out.

With (b) all members are out of sight, say because the coordinator's host is cut off from them, or has no workers of
its own. The coordinator answers a beat only after it has set ``last_beat`` (``membership._worker_beat``), and never
again once the worker counts as lost. So for the last answered beat t0 <= t1 <= last_beat, and all leases have run out
at last_beat + T. Both clocks only measure a time that passes on their own machine, and are never compared; it is
enough that neither is wrong by a tenth. The worker's goes on while its machine sleeps (CLOCK_BOOTTIME); the
coordinator's may stand still meanwhile, which only makes it wait longer. An answer that comes late brings a late
stamp, not a longer lease.

What remains: a process that is stopped (SIGSTOP, a hypervisor) between the look at its lease and the step does that
one step when it goes on, in its own memory, and then looks again. What it would write is refused by the checkpoints'
fence (:mod:`hvtrain.checkpoint.fence`), and the ledger counts a step for the latest round that committed it.

A coordinator that stands still (Ctrl-Z) answers nobody, so all workers wait; it answers what lies in its sockets
before it judges anybody (``Coordinator._catch_up``), and they go on. In one direction cut, the two ends agree as
well: without answers there is no lease, and without beats the worker is lost. The cost: a look at a clock per step,
and one small message back for every beat.
"""

from __future__ import annotations

import threading
import time
from typing import Callable

SHARE = 0.9
"""Of elastic.heartbeat_timeout; the rest is for clocks that run at different speeds."""

LOOK_SECONDS = 0.5
"""How often at least a worker that waits looks whether that is of any use still."""


def clock() -> float:
    """Seconds, only growing, also while the machine sleeps."""
    return time.clock_gettime(_CLOCK)


_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Lease:
    """Valid for ``SHARE`` of ``timeout`` seconds after the latest beat that the coordinator has answered.

    One thread renews it, another one looks at it.
    """

    def __init__(self, timeout: float, clock: Callable[[], float] = clock):
        self._seconds, self._clock = SHARE * timeout, clock
        self._until = float("-inf")
        self._woken = threading.Event()

    @property
    def valid(self) -> bool:
        return self._clock() < self._until

    @property
    def left(self) -> float:
        """Seconds that it is still valid, 0 if it is not."""
        return max(0.0, self._until - self._clock())

    def stamp(self) -> float:
        """What the next beat is to say; to be asked for before it is sent."""
        return self._clock()

    def renew(self, stamp: float) -> bool:
        """The coordinator has answered the beat with this stamp; True if that ends a time without a lease."""
        lapsed = not self.valid
        # One from the future would be a coordinator's bug, and as good as no lease at all.
        self._until = max(self._until, min(stamp, self._clock()) + self._seconds)
        self._woken.set()
        return lapsed and self.valid

    def wait(self, pointless: Callable[[], bool]) -> bool:
        """Wait until it is valid; False if waiting is ``pointless`` before, which :meth:`wake` has it look at."""
        while True:
            self._woken.clear()
            if self.valid:
                return True
            if pointless():
                return False
            self._woken.wait(LOOK_SECONDS)

    def wake(self) -> None:
        """Something has happened that may make waiting pointless."""
        self._woken.set()
