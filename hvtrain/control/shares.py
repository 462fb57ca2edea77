"""How many threads of the processor each worker computes with: the same number everywhere, for the whole job.

::

    h1: 8 cores, 4 slots   share 2 --+
    h2: 8 cores, 2 slots   share 4 --+--> the first worker is started: 2, on all hosts
    h3: 8 cores, 1 slot    share 8 - - -  comes later: 2 there as well

With another number of threads a matrix product is added up in another order. A worker that is replaced on another host
would not compute the same bits, nor would a job that is run again and finds its workers placed otherwise.
"""

from __future__ import annotations


class Shares:
    """What the agents of a job offer each of their workers."""

    def __init__(self) -> None:
        self._offered: dict[str, int] = {}
        self._each: int | None = None

    def offer(self, agent: str, slots: int, threads: int) -> None:
        """An agent has come, that would have each of its ``slots`` workers compute with so many ``threads``."""
        if slots:
            self._offered[agent] = threads

    def withdraw(self, agent: str) -> None:
        """An agent has gone."""
        self._offered.pop(agent, None)

    def each(self) -> int:
        """Threads of each worker, settled by the first call: the least that is offered then."""
        if self._each is None:
            self._each = min(self._offered.values(), default=1)
        return self._each
