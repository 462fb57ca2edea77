"""Who belongs to a job: its workers and agents, each with where it stands, and the two tables that hold them.

The tables are values: they are replaced, never changed. They count what is asked for with every event, so that an
event costs the same in a job of four workers and in one of a thousand.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Generic, Iterator, Mapping, TypeVar


Value = TypeVar("Value")


def replace(value: Value, **changes) -> Value:
    """``value`` with some attributes changed, as dataclasses.replace does it, which takes ten times as long.

    For frozen dataclasses without slots; ``__post_init__`` is not called.
    """
    attributes = vars(value)
    assert changes.keys() <= attributes.keys(), changes.keys() - attributes.keys()
    new = object.__new__(type(value))
    vars(new).update(attributes)
    vars(new).update(changes)
    return new


class Stage(Enum):
    """Where a worker stands."""

    STARTING = "starting"  # its start was ordered; it builds its model and data
    READY = "ready"  # waits for a seat
    SEATED = "seated"  # a member of the round
    RETURNING = "returning"  # its round is over; it is to say that it is ready again
    LEAVING = "leaving"  # was told to go
    FINISHED = "finished"  # its loop has ended well; it keeps its state until all have
    DOOMED = "doomed"  # is being killed, or has said that it ends; nobody waits for it any more

    __hash__ = object.__hash__  # Enum's own is written in Python, and stages are counted with every event


HERE = (Stage.STARTING, Stage.READY, Stage.SEATED, Stage.RETURNING, Stage.FINISHED)
"""Stages of those that fill a place of the job."""


@dataclass(frozen=True)
class Worker:
    """``ticks`` counts what the worker has got done (micro-batches, steps); ``ticked`` is when it last got on.

    ``waiting``: it waits for the others in a collective operation, so it is not the one that holds them up.
    """

    agent: str
    number: int
    rank: int
    stage: Stage = Stage.STARTING
    since: float = 0.0
    last_beat: float = 0.0
    step: int = -1  # committed steps; -1: holds no state of the run yet
    ticks: int = 0
    ticked: float = 0.0
    waiting: bool = False
    local: int = 0  # which of its host's devices it uses
    leave: bool = False  # is to leave at the next step boundary
    returned: int = -1  # the round that it came back from when it was last ready, 0 for none
    trained: bool = False  # was a member of a round that was active

    @property
    def alive(self) -> bool:
        return self.stage is not Stage.DOOMED

    @property
    def taking_part(self) -> bool:
        """It trains or may train."""
        return self.stage in (Stage.STARTING, Stage.READY, Stage.SEATED, Stage.RETURNING)


@dataclass(frozen=True)
class Agent:
    """``false_starts``: workers that it lost in a row before they were ready; it rests for a while after some.

    ``refused``: it gets no workers (:mod:`hvtrain.control.newcomers`).
    """

    host: str
    slots: int
    last_beat: float = 0.0
    leaving: bool = False
    false_starts: int = 0
    rest_until: float = 0.0
    refused: bool = False

    @property
    def open(self) -> bool:
        """Whether it may have workers."""
        return not self.leaving and not self.refused


Item = TypeVar("Item")


class Table(Mapping[str, Item], Generic[Item]):
    """Items by name, the oldest first. Keeps the dict that it is given: nobody else may change it."""

    def __init__(self, items: dict[str, Item] | None = None):
        self._items: dict[str, Item] = items if items is not None else {}

    def __getitem__(self, name: str) -> Item:
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._items!r})"

    # What Mapping offers for these goes item by item through the methods above, at ten times the cost.
    def get(self, name, default=None):
        return self._items.get(name, default)

    def items(self):
        return self._items.items()

    def values(self):
        return self._items.values()


class Fleet(Table[Agent]):
    """The agents by name."""

    def put(self, name: str, agent: Agent) -> Fleet:
        return Fleet({**self._items, name: agent})

    def without(self, name: str) -> Fleet:
        return Fleet({other: agent for other, agent in self._items.items() if other != name})

    @cached_property
    def slots(self) -> int:
        """Workers that the agents can run, those left out that are leaving or refused."""
        return sum(agent.slots for agent in self._items.values() if agent.open)


class Crew(Table[Worker]):
    """The workers by name."""

    def __init__(self, workers: dict[str, Worker] | None = None, counts: dict[Stage, list[int]] | None = None):
        super().__init__(workers)
        self._counts = counts if counts is not None else _counted(self._items.values())

    def put(self, changed: Mapping[str, Worker]) -> Crew:
        """With ``changed`` workers, or new ones."""
        pairs = [(self._items.get(name), worker) for name, worker in changed.items()]
        moved = [(old, new) for old, new in pairs
                 if old is None or old.stage is not new.stage or old.leave != new.leave]
        return Crew({**self._items, **changed}, self._recounted(moved) if moved else self._counts)

    def without(self, name: str) -> Crew:
        left = {other: worker for other, worker in self._items.items() if other != name}
        return Crew(left, self._recounted([(self._items[name], None)]))

    def count(self, *stages: Stage) -> int:
        """How many are in one of ``stages``."""
        found = 0
        for stage in stages:
            staying, leaving = self._counts[stage]
            found += staying + leaving
        return found

    def staying(self, *stages: Stage) -> int:
        """How many are in one of ``stages`` and are not to leave."""
        return sum([self._counts[stage][0] for stage in stages])

    def at(self, *stages: Stage) -> Iterator[tuple[str, Worker]]:
        """Name and worker of everybody in one of ``stages``, the oldest first."""
        return ((name, worker) for name, worker in self._items.items() if worker.stage in stages)

    def _recounted(self, moved: list[tuple[Worker | None, Worker | None]]) -> dict[Stage, list[int]]:
        counts = {stage: list(pair) for stage, pair in self._counts.items()}
        for old, new in moved:
            if old is not None:
                counts[old.stage][old.leave] -= 1
            if new is not None:
                counts[new.stage][new.leave] += 1
        return counts


def _counted(workers) -> dict[Stage, list[int]]:
    """Per stage: how many stay, how many are to leave."""
    counts = {stage: [0, 0] for stage in Stage}
    for worker in workers:
        counts[worker.stage][worker.leave] += 1
    return counts
