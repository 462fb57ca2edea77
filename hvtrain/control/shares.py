"""How many threads of the processor each worker computes with: the same number everywhere, for the whole job.

::

    h1: 8 cores, 4 slots   share 2 --+
    h2: 8 cores, 2 slots   share 4 --+--> the first worker is started: 2, on all hosts
    h3: 8 cores, 1 slot    share 8 - - -  comes later: 2 there as well
    h4: 1 core,  1 slot    share 1 - - -  too, though they take turns there; which is said

With another number of threads a matrix product is added up in another order. A worker that is replaced on another host
would not compute the same bits, nor would a job that is run again and finds its workers placed otherwise.
"""

from __future__ import annotations

MOST_THREADS = 65536


class Shares:
    """What the agents of a job offer each of their workers. ``each``: what is settled already."""

    def __init__(self, each: int | None = None) -> None:
        self._offered: dict[str, int] = {}
        self._each = each
        self._short: set[str] = set()  # hosts that have been told of

    def offer(self, agent: str, slots: int, threads: int) -> None:
        """An agent has come, that would have each of its ``slots`` workers compute with so many ``threads``."""
        if slots:
            self._offered[agent] = threads

    def shortage(self, host: str, slots: int, threads: int) -> str:
        """What people are told of a host that offers less than is settled; once, and nothing of others."""
        if not slots or self._each is None or threads >= self._each or host in self._short:
            return ""
        self._short.add(host)
        cores = f"{threads} core{'' if threads == 1 else 's'}"
        return (f"{host} has {cores} for each worker, but this run computes with {self._each} threads each: so it does "
                "there, more slowly, and the weights stay the same to the last bit. "
                f"launch.threads={threads} chooses otherwise when it is started again")

    def withdraw(self, agent: str) -> None:
        """An agent has gone."""
        self._offered.pop(agent, None)

    def each(self) -> int:
        """Threads of each worker, settled by the first call: the least that is offered then."""
        if self._each is None:
            self._each = min(self._offered.values(), default=1)
        return self._each
