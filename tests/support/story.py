"""A chronicle with a clock made by hand, and what happens to its job."""

from __future__ import annotations

from hvtrain.control import causes, events, messages as m
from hvtrain.control.chronicle import Chronicle
from hvtrain.control.roster import Agent, Limits, Phase, Round, Stage, State, Status, Worker
from tests.support.control import Watcher

LIMITS = Limits(start=10.0, stop=5.0, heartbeat=5.0)


class Story:
    """A chronicle and what happens to its job."""

    def __init__(self):
        self.now, self.watcher, self.progress, self.number = 100.0, Watcher(), 0, 0
        self.members: list[str] = []
        self.chronicle = Chronicle(self.watcher, lambda: self.now)

    def state(self, *, lost: tuple[str, ...] = (), phase: Phase = Phase.OPEN, failure=None) -> State:
        workers = {name: Worker("host", n, n, stage=Stage.DOOMED if name in lost else Stage.SEATED)
                   for n, name in enumerate(self.members)}
        return State(wanted=2, limits=LIMITS, phase=phase, agents={"host": Agent("vm", 4)}, workers=workers,
                     round=Round(self.number, Status.ACTIVE, members=tuple(self.members)), progress=self.progress,
                     open_failure=failure)

    def act(self, action, **state):
        self.chronicle.action(action, self.state(**state))

    def lose(self, name: str, *, seconds: float = 0.0, cause=None, **state):
        """``seconds`` later a member is lost and the round is cut."""
        self.now += seconds
        rank = self.members.index(name)
        cause = cause or causes.lost_worker(rank, "vm", 0, 9, self.progress)
        self.act(events.ReportLoss(name, rank, "host", cause), lost=(name,), **state)
        self.act(events.CutRound(self.number, tuple(self.members), cause.reason), lost=(name,), **state)

    def pause(self, reason: str):
        self.act(events.PauseRound(tuple(self.members), reason))

    def seats(self, *members: str):
        self.number, self.members = self.number + 1, list(members)
        self.act(events.FormRound(self.number, tuple((name, "vm") for name in members)))

    def formed(self, step: int, *, active: bool = True, **more):
        for name in self.members:
            self.chronicle.formed(name, m.Formed(round=self.number, step=step, **more))
        if active:
            self.active(step)

    def active(self, step: int):
        before, self.progress = self.progress, step
        self.act(events.RoundActive(self.number, step, before))

    def first_step(self, *names: str):
        self.progress += 1
        for name in names or self.members:
            self.chronicle.stepped(name, m.Stepped(round=self.number, step=self.progress))

    def begin(self, *members: str, step: int = 0):
        """The first round trains."""
        self.seats(*members)
        self.formed(step, source="checkpoint" if step else "start", known=step)
        self.first_step()

    def train(self, steps: int, each: float = 0.1):
        """``steps`` more steps, which rank 0 reports."""
        self.now += steps * each
        self.progress += steps
        self.chronicle.report(m.Report(kind="train", step=self.progress))

    def end(self) -> dict:
        self.act(events.EndJob(causes.done()), phase=Phase.OVER)
        self.now += 7.0  # the agents are told, files are written
        self.chronicle.close()
        return self.watcher.account

    def told(self, name: str) -> list[dict]:
        return self.watcher.named(name)
