"""The job's history as events: who was lost, how long every part of a recovery took, and what share of time was training.

::

    loss --> cut --> survivors back --> replacement ready --> seats given --> formed --> first step --> full strength
             t=0      returned           replaced              seated         formed      first_step    full
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Callable, Mapping, Protocol

from hvtrain.control import events, messages
from hvtrain.control.roster import State

KEPT = 1000
"""Losses and rounds that the account of a job lists one by one; events.jsonl has all."""

STALLS = {"silent", "stuck", "no_progress"}


class Observer(Protocol):
    """Who is told what happens in the job: the run's reporter."""

    def event(self, name: str, step: int | None = None, **values) -> None: ...
    def outline(self, outline: dict) -> None: ...
    def measured(self, kind: str, step: int, epoch: int, values: dict) -> None: ...
    def summary(self, summary: dict) -> None: ...
    def faults(self, account: dict) -> None: ...


@dataclass
class Chapter:
    """One change from a round to the next, as it is being lived through."""

    began: float
    reason: str
    old_size: int = 0
    number: int = 0
    members: tuple[str, ...] = ()
    newcomers: frozenset[str] = frozenset()
    marks: dict[str, float] = field(default_factory=dict)
    inside: dict[str, float] = field(default_factory=dict)
    stepped: set[str] = field(default_factory=set)
    received_bytes: int = 0
    step: int = 0


class Chronicle:
    """Writes the history of a job.

    Args:
        clock: seconds, only growing.
    """

    def __init__(self, observer: Observer, clock: Callable[[], float]):
        self._observer, self._clock = observer, clock
        self._chapter: Chapter | None = Chapter(clock(), "start")
        self._size = 0
        self._first_step: float | None = None
        self._down = 0.0  # seconds without training, from a cut to the next first step
        self._repeated = 0  # steps that had to be taken again after rollbacks
        self._lost = 0
        self._losses: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._rounds: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._steps = 0

    # What the coordinator does ---------------------------------------------------------------------------
    def action(self, action: events.Action, state: State) -> None:
        """Take note of what is about to be carried out."""
        if isinstance(action, events.ReportLoss):
            agent = state.agents.get(action.agent)
            cause = action.cause
            loss = {"worker": action.worker, "rank": action.rank, "host": agent.host if agent else action.agent,
                    "cause": cause.kind, "reason": cause.reason}
            step = state.progress if cause.step is None else max(cause.step, 0)
            self._lost += 1
            self._losses.append({**loss, "step": step})
            self._observer.event("worker_lost", step=step, **loss)
            if cause.kind in STALLS:
                self._observer.event("stall", step=step, rank=action.rank, reason=cause.reason)
        elif isinstance(action, events.CutRound):
            self._begin("loss", action.reason)
        elif isinstance(action, events.PauseRound):
            self._begin(action.reason, action.reason)
        elif isinstance(action, events.FormRound):
            self._formed_by(action)
        elif isinstance(action, events.RoundActive):
            self._active(action)

    def _begin(self, reason: str, text: str) -> None:
        if self._chapter is not None and "first_step" in self._chapter.marks:
            self._end(self._chapter)  # it broke before it was back to full strength
        if self._chapter is None:
            self._chapter = Chapter(self._clock(), reason, old_size=self._size)
        elif reason == "loss":  # the new round broke as well before it took a step
            self._chapter.reason = reason
            self._chapter.marks.clear()

    def _formed_by(self, action: events.FormRound) -> None:
        chapter = self._chapter
        if chapter is None:
            return
        names = tuple(name for name, _ in action.members)
        chapter.number, chapter.members = action.round, names
        chapter.stepped.clear()
        self._mark("seated")

    def _active(self, action: events.RoundActive) -> None:
        chapter = self._chapter
        if chapter is None:
            return
        self._mark("formed")
        chapter.step = action.step
        if chapter.old_size and len(chapter.members) != chapter.old_size:
            self._observer.event("resize", step=action.step, old=chapter.old_size, new=len(chapter.members))
        self._size = len(chapter.members)

    # What workers say ------------------------------------------------------------------------------------
    def ready(self, name: str, message: messages.Ready) -> None:
        """A worker can take a seat."""
        if message.outline:
            self._observer.outline(message.outline)
        if self._chapter is not None:
            self._mark("returned" if message.round else "replaced")

    def formed(self, name: str, message: messages.Formed) -> None:
        """A member has the state of its round."""
        chapter = self._chapter
        if chapter is None or message.round != chapter.number:
            return
        for part, seconds in message.seconds.items():
            chapter.inside[part] = max(chapter.inside.get(part, 0.0), seconds)
        chapter.received_bytes += message.received_bytes
        if chapter.members and name == chapter.members[0] and message.source in ("memory", "checkpoint"):
            if message.known > message.step or message.source == "memory":
                lost = max(0, message.known - message.step)
                self._repeated += lost
                self._observer.event("rollback", step=message.step, source=message.source, steps=lost)

    def stepped(self, name: str, message: messages.Stepped) -> None:
        """A member has committed its first step in its round."""
        chapter = self._chapter
        if chapter is None or message.round != chapter.number:
            return
        now = self._clock()
        chapter.stepped.add(name)
        if "first_step" not in chapter.marks:
            self._mark("first_step")
            if self._first_step is None:
                self._first_step = now
            else:
                self._down += now - chapter.began
        if chapter.stepped >= set(chapter.members):
            self._mark("full")
            self._end(chapter)

    def report(self, message: messages.Report) -> None:
        """Rank 0's measurements and events."""
        self._steps = max(self._steps, message.step)
        if message.kind == "event":
            values = {key: value for key, value in message.values.items() if key not in ("name", "step")}
            self._observer.event(message.name, step=message.step, **values)
        else:
            self._observer.measured(message.kind, message.step, message.epoch, message.values)

    def close(self) -> None:
        """The job is over: the account of its faults."""
        if self._chapter is not None and self._chapter.number:
            self._end(self._chapter)
        self._observer.faults(self.account())

    def account(self) -> dict[str, Any]:
        """Losses, rounds, and the goodput: the share of the time since the first step that went into committed steps."""
        total = self._clock() - self._first_step if self._first_step is not None else 0.0
        per_step = (total - self._down) / max(1, self._steps + self._repeated)
        wasted = self._down + self._repeated * per_step
        goodput = max(0.0, 1.0 - wasted / total) if total > 0 else None
        return {"losses": list(self._losses), "lost_workers": self._lost, "rounds": list(self._rounds),
                "repeated_steps": self._repeated, "seconds_down": round(self._down, 3),
                "goodput": None if goodput is None else round(goodput, 4)}

    def _mark(self, what: str) -> None:
        assert self._chapter is not None
        self._chapter.marks[what] = round(self._clock() - self._chapter.began, 4)

    def _end(self, chapter: Chapter) -> None:
        self._chapter = None
        seconds: Mapping[str, float] = {**chapter.marks, **{f"in_{k}": round(v, 4) for k, v in chapter.inside.items()}}
        record = {"round": chapter.number, "size": len(chapter.members), "reason": chapter.reason, "seconds": dict(seconds),
                  "received_bytes": chapter.received_bytes}
        self._rounds.append({**record, "step": chapter.step})
        self._observer.event("round", step=chapter.step, **record)
