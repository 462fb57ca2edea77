"""The job's history as events: who was lost, how long every part of a recovery took, and what share of time was used.

::

    loss --> cut --> survivors back --> replacement ready --> seats given --> formed --> first step --> full strength
             t=0      returned           replaced              seated         formed      first_step    full

A worker that only falls silent is noticed late: ``unnoticed`` says how long before the cut it had given its last sign.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Callable, Protocol

from hvtrain.control import events, messages
from hvtrain.control.causes import Cause
from hvtrain.control.overview import present
from hvtrain.control.roster import Phase, State
from hvtrain.control.tally import Tally

KEPT = 1000
"""Losses and rounds that the account of a job lists one by one; events.jsonl has all."""

STALLS = {"silent", "stuck", "no_progress"}
RESERVED = {"name", "step", "event", "time"}

class Observer(Protocol):
    """Who is told what happens in the job: the run's reporter."""

    def event(self, name: str, step: int | None = None, **values) -> None: ...
    def outline(self, outline: dict) -> None: ...
    def measured(self, kind: str, step: int, epoch: int, values: dict) -> None: ...
    def strength(self, round: int, size: int) -> None: ...
    def summary(self, summary: dict) -> None: ...
    def faults(self, account: dict) -> None: ...


@dataclass
class Chapter:
    """One change from a round to the next, as it is being lived through, in as many attempts as it takes."""

    began: float
    reason: str
    down_since: float | None = None
    number: int = 0
    members: tuple[str, ...] = ()
    formed: set[str] = field(default_factory=set)
    connected: bool = False
    stepped: set[str] = field(default_factory=set)
    marks: dict[str, float] = field(default_factory=dict)
    inside: dict[str, float] = field(default_factory=dict)
    unnoticed: float = 0.0
    received_bytes: int = 0
    step: int = 0
    known: int = 0  # the highest step that was ever committed
    repeated: int = 0
    told_rollback: bool = False  # of this attempt

    @property
    def trains(self) -> bool:
        return "first_step" in self.marks

    def seat(self, number: int, members: tuple[str, ...], known: int) -> None:
        """An attempt to form the round begins."""
        self.number, self.members, self.known = number, members, max(self.known, known)
        self.formed, self.stepped = set(), set()
        self.connected, self.told_rollback, self.step = False, False, 0

    def again(self) -> None:
        """The attempt has failed."""
        self.marks, self.inside, self.connected = {}, {}, False


class Chronicle:
    """Writes the history of a job.

    Args:
        clock: seconds, only growing.
    """

    def __init__(self, observer: Observer, clock: Callable[[], float]):
        self._observer, self._clock = observer, clock
        self._chapter: Chapter | None = Chapter(clock(), "start")
        self._next: Chapter | None = None  # asked for before the present one was over
        self._size = 0
        self._trains_since = self._stalled_since = clock()
        self._tally = Tally()
        self._lost = 0
        self._losses: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._rounds: deque[dict[str, Any]] = deque(maxlen=KEPT)

    # What the coordinator does ---------------------------------------------------------------------------
    def action(self, action: events.Action, state: State) -> None:
        """Take note of what is about to be carried out, now that the machine is in ``state``."""
        back = isinstance(action, events.RoundActive)  # perhaps to an earlier step
        self._tally.step = state.progress if back else max(self._tally.step, state.progress)
        if isinstance(action, events.ReportLoss):
            self._loss(action, state)
        elif isinstance(action, events.ReportLeftOut):
            self._observer.event("left_out", step=self._tally.step, host=action.host, reason=action.reason,
                                 again=action.again)
        elif isinstance(action, events.CutRound):
            failure = state.open_failure
            if failure is not None and failure.kind == "no_progress" and failure.reason == action.reason:
                self._stall(failure, self._tally.step)  # nobody's fault, so no loss tells of it
                self._stalled_since = self._clock() - 2 * state.step_limit
            self._begin("loss")
        elif isinstance(action, events.PauseRound):
            if self._chapter is not None and self._chapter.connected and not self._chapter.trains:
                self._next = Chapter(self._clock(), action.reason)  # its members take a step before they pause
            else:
                self._begin(action.reason)
        elif isinstance(action, events.FormRound) and self._chapter is not None:
            if self._next is not None:
                self._end(self._chapter)
            known = max(state.progress, self._tally.step)  # rank 0's measurements are quicker than heartbeats
            self._chapter.seat(action.round, tuple(name for name, _ in action.members), known)
            self._mark("seated")
        elif isinstance(action, events.RoundActive) and self._chapter is not None:
            if action.round == self._chapter.number:
                self._chapter.step = action.step
                self._connected(self._chapter)
        elif isinstance(action, events.EndJob):
            self._tally.end(self._clock())

    def _loss(self, action: events.ReportLoss, state: State) -> None:
        agent, cause = state.agents.get(action.agent), action.cause
        loss = {"worker": action.worker, "rank": action.rank, "host": agent.host if agent else action.agent,
                "cause": cause.kind, "reason": cause.reason, "job_goes_on": state.phase is Phase.OPEN}
        step = self._tally.step  # what the lost one has said of itself may be older
        self._lost += 1
        self._losses.append({**loss, "step": step})
        self._observer.event("worker_lost", step=step, **loss)
        self._stall(cause, step)
        worker = state.workers.get(action.worker)
        if cause.kind in STALLS and worker is not None and action.worker in state.round.members:
            self._stalled_since = worker.last_beat if cause.kind == "silent" else worker.ticked
        if state.round.number:
            self._observer.strength(state.round.number, len(present(state)))

    def _stall(self, cause: Cause, step: int) -> None:
        if cause.kind in STALLS:
            self._observer.event("stall", step=step, rank=cause.rank, reason=cause.reason)

    def _begin(self, reason: str) -> None:
        now = self._clock()
        self._next = None
        if self._chapter is not None and self._chapter.trains:
            self._end(self._chapter)  # it broke before it was back to full strength
        if self._chapter is None:
            self._chapter = Chapter(now, reason)
        else:  # the new round broke as well before it took a step
            self._chapter.again()
            if reason == "loss" and self._chapter.reason not in ("loss", "start"):
                self._chapter.reason, self._chapter.began = reason, now
        if reason == "loss" and self._chapter.down_since is None:
            self._chapter.down_since = now
            if self._stalled_since > self._trains_since:
                self._chapter.down_since, self._chapter.unnoticed = self._stalled_since, now - self._stalled_since

    def _connected(self, chapter: Chapter) -> None:
        """All members have formed the round; heard of by their own words, or a moment later by the machine's."""
        if chapter.connected:
            return
        chapter.connected = True
        if not chapter.trains:
            self._mark("formed")
        size = len(chapter.members)
        if self._size and size != self._size:
            self._observer.event("resize", step=chapter.step, old=self._size, new=size)
        self._size = size
        self._observer.strength(chapter.number, size)

    # What workers say ------------------------------------------------------------------------------------
    def ready(self, name: str, message: messages.Ready) -> None:
        """A worker can take a seat."""
        if message.outline:
            self._observer.outline(message.outline)
        chapter = self._chapter
        if chapter is None or "seated" in chapter.marks:
            return  # it comes too late for this round
        if message.round and chapter.down_since is None:
            chapter.down_since = self._clock()  # asked to pause, they trained on until now
        self._mark("returned" if message.round else "replaced")

    def formed(self, name: str, message: messages.Formed) -> None:
        """A member has the state of its round."""
        chapter = self._chapter
        if chapter is None or message.round != chapter.number or name not in chapter.members:
            return
        chapter.formed.add(name)
        chapter.step = max(chapter.step, message.step)
        chapter.known = max(chapter.known, message.known)
        for part, seconds in message.seconds.items():
            chapter.inside[part] = max(chapter.inside.get(part, 0.0), seconds)
        chapter.received_bytes += message.received_bytes
        if message.source != "members" and not chapter.told_rollback:
            chapter.told_rollback = True
            self._rollback(chapter, message)
        if chapter.formed >= set(chapter.members):
            self._connected(chapter)

    def _rollback(self, chapter: Chapter, message: messages.Formed) -> None:
        steps = max(0, chapter.known - message.step)
        if steps or message.source == "memory":
            self._observer.event("rollback", step=message.step, source=message.source,
                                 steps=max(0, steps - chapter.repeated))
        chapter.repeated = max(chapter.repeated, steps)

    def stepped(self, name: str, message: messages.Stepped) -> None:
        """A member has committed its first step in its round."""
        chapter = self._chapter
        if chapter is None or message.round != chapter.number or name not in chapter.members:
            return
        if not chapter.trains:
            self._mark("first_step")
            self._trains_since = self._clock()
            self._tally.stepped(self._clock(), from_step=chapter.step, down_since=chapter.down_since,
                                repeated=chapter.repeated)
        self._tally.step = max(self._tally.step, message.step)
        chapter.stepped.add(name)
        if chapter.stepped >= set(chapter.members):
            self._mark("full")
            self._connected(chapter)
            self._end(chapter)

    def report(self, message: messages.Report) -> None:
        """Rank 0's measurements and events."""
        self._tally.step = max(self._tally.step, message.step)
        if message.kind == "event":
            values = {key: value for key, value in message.values.items() if key not in RESERVED}
            self._observer.event(message.name, step=message.step, **values)
        else:
            self._observer.measured(message.kind, message.step, message.epoch, message.values)

    def close(self) -> None:
        """The job is over: the account of its faults."""
        self._tally.end(self._clock())
        account = self.account()
        if self._chapter is not None and self._chapter.number:
            self._end(self._chapter)
            account["rounds"] = list(self._rounds)
        self._observer.faults(account)

    def account(self) -> dict[str, Any]:
        """Losses, rounds, and the figures of :class:`Tally`, among them the goodput.

        That is the share of the time since the first step that went neither into recoveries nor into repeated steps.
        """
        now = self._clock()
        return {"losses": list(self._losses), "lost_workers": self._lost, "rounds": list(self._rounds),
                **self._tally.figures(now, self._ongoing(now))}

    def _ongoing(self, now: float) -> float:
        """Seconds of an outage that no step has ended yet, or that none will end: the loss came with the last one."""
        chapter = self._chapter
        if chapter is None or chapter.trains or chapter.down_since is None:
            return 0.0
        over = chapter.began + chapter.marks["formed"] if chapter.connected else self._tally.ended_at or now
        return max(0.0, over - chapter.down_since)

    def _mark(self, what: str) -> None:
        assert self._chapter is not None
        self._chapter.marks[what] = round(self._clock() - self._chapter.began, 4)

    def _end(self, chapter: Chapter) -> None:
        self._chapter, self._next = self._next, None
        late = {"unnoticed": round(chapter.unnoticed, 4)} if chapter.unnoticed else {}
        seconds = {**late, **chapter.marks, **{f"in_{part}": round(value, 4) for part, value in chapter.inside.items()}}
        record = {"round": chapter.number, "size": len(chapter.members), "reason": chapter.reason, "seconds": seconds,
                  "received_bytes": chapter.received_bytes}
        self._rounds.append({**record, "step": chapter.step})
        self._observer.event("round", step=chapter.step, **record)
