"""A world of ranks that can reduce and broadcast: one process alone, or a round of Horovod processes.

The loop and the adapters see only :class:`World`. One process alone needs no Horovod; :class:`SoloWorld` is
the null object for it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any, Protocol

from hvtrain.engine import roundsecret
from hvtrain.engine.reductions import Span


@dataclass(frozen=True)
class Place:
    """A process's place in a round, and how gloo is to reach the others.

    ``timeout`` (seconds) bounds every single collective operation; ``cycle_ms`` is how often Horovod's
    background thread looks for work while an operation is under way, ``idle_ms`` how long it sleeps
    otherwise unless it is woken; ``shared_memory`` allows ranks of one host to add up through memory that they share.
    ``address`` is this process's own, on ``interface``; "" for that one's first.
    ``secret`` is the round's (``engine/roundsecret.py``), "" where its members need prove nothing.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    cross_rank: int = 0
    cross_size: int = 1
    host: str = "localhost"
    rendezvous_host: str = ""
    rendezvous_port: int = 0
    interface: str = ""
    address: str = ""
    timeout: float = 30.0
    cycle_ms: float = 1.0
    idle_ms: float = 20.0
    shared_memory: bool = True
    secret: str = field(default="", repr=False)

    def environment(self) -> dict[str, str]:
        """The variables from which Horovod's ``init()`` reads this place."""
        variables = {
            "HOROVOD_RANK": self.rank, "HOROVOD_SIZE": self.size,
            "HOROVOD_LOCAL_RANK": self.local_rank, "HOROVOD_LOCAL_SIZE": self.local_size,
            "HOROVOD_CROSS_RANK": self.cross_rank, "HOROVOD_CROSS_SIZE": self.cross_size,
            "HOROVOD_HOSTNAME": self.host, "HOROVOD_CONTROLLER": "gloo", "HOROVOD_CPU_OPERATIONS": "gloo",
            "HOROVOD_GLOO_RENDEZVOUS_ADDR": self.rendezvous_host,
            "HOROVOD_GLOO_RENDEZVOUS_PORT": self.rendezvous_port,
            "HOROVOD_GLOO_IFACE": self.interface,
            "HVTRAIN_GLOO_ADDRESS": self.address,
            # gloo takes whole seconds
            "HOROVOD_GLOO_TIMEOUT_SECONDS": max(1, round(self.timeout)),
            # Fused buffers are composed by timing, and so would be the order of summation (DESIGN 5).
            "HOROVOD_FUSION_THRESHOLD": 0,
            "HOROVOD_CYCLE_TIME": self.cycle_ms,
            "HVTRAIN_IDLE_CYCLE_MS": self.idle_ms,
            "HVTRAIN_SHARED_MEMORY": int(self.shared_memory),
            **({roundsecret.VARIABLE: self.secret} if self.secret else {}),
        }
        return {name: str(value) for name, value in variables.items()}


FOREIGN_VARIABLES = ("HOROVOD_ELASTIC", "HOROVOD_TIMELINE", "HOROVOD_AUTOTUNE", "HOROVOD_THREAD_AFFINITY",
                     "HOROVOD_GLOO_GET_RANK_AND_SIZE")
"""Set by other launchers; they would change what ``init()`` does."""


def export(place: Place) -> None:
    """Put ``place`` into this process's environment, for Horovod to read."""
    for name in (*FOREIGN_VARIABLES, roundsecret.VARIABLE):
        os.environ.pop(name, None)
    os.environ.update(place.environment())


class World(Protocol):
    """Collective operations among the ranks of a round. Tensors are NumPy arrays, or the framework's own.

    Every operation raises :class:`hvtrain.errors.RoundBroken` when a member is gone. Operations that belong
    together carry the same ``name`` on all ranks. ``timeout`` (seconds) bounds each of them; ``waiting`` says, to
    other threads, that a thread is in one of them at the moment: not it, but another rank, is late.
    """

    rank: int
    size: int
    local_rank: int
    timeout: float
    waiting: bool

    def sum_async(self, tensor: Any, name: str, codec: str = "none") -> Any:
        """Start to add ``tensor`` up over all ranks, in place; returns a handle for :meth:`wait`.

        ``codec`` (see ``comm/codecs.py``) other than none: float32 on the CPU only.
        """

    def noise(self, seed: int) -> None:
        """Seed the noise of lossy codecs, from now on; the same on all ranks."""

    def reduced(self) -> float:
        """Seconds that sums have been under way so far in this process, be anyone waiting for them or not."""

    def record(self, on: bool) -> None:
        """Keep a span of every sum that ends from now on, for :meth:`spans`; or stop, and forget them."""

    def spans(self) -> list[Span]:
        """The sums that have ended since the last call, oldest first, under the names that they were started with."""

    def wait(self, handle: Any) -> None:
        """Wait for a handle's operation."""

    def broadcast(self, tensor: Any, root: int, name: str) -> None:
        """Overwrite ``tensor`` by that of rank ``root``."""

    def cut(self) -> int:
        """Shut this round's sockets, so that whatever waits on a peer raises at once; returns how many there were.

        From any thread, at any time: nothing happens when the round is over.
        """

    def close(self) -> None:
        """Leave the round."""


class SoloWorld:
    """The world of one process: sums and broadcasts are the tensors themselves."""

    rank, size, local_rank = 0, 1, 0
    timeout, waiting = Place.timeout, False

    def sum_async(self, tensor: Any, name: str, codec: str = "none") -> Any:
        return None

    def noise(self, seed: int) -> None:
        return None

    def reduced(self) -> float:
        return 0.0

    def record(self, on: bool) -> None:
        return None

    def spans(self) -> list[Span]:
        return []

    def wait(self, handle: Any) -> None:
        return None

    def broadcast(self, tensor: Any, root: int, name: str) -> None:
        return None

    def cut(self) -> int:
        return 0

    def close(self) -> None:
        return None
