"""A membership machine with its clock, for tests that tell a story: what happens, and what the machine answers."""

from __future__ import annotations

from hvtrain.control import events as e
from hvtrain.control.causes import ECHO, Cause
from hvtrain.control.membership import deadline, step
from hvtrain.control.roster import Limits, Phase, Stage, State, Status
from hvtrain.errors import ExitCode

BUG = Cause(ExitCode.USER_CODE, "rank 1: ValueError: boom", "Traceback ...", rank=1, step=7, kind="raised")
ECHO_CAUSE = Cause(ExitCode.LOST_WORKERS, "rank 0: connection closed by peer", weight=ECHO)


class Story:
    """``slots``: agent -> (host, slots) of those that have joined. Every action is kept."""

    def __init__(self, wanted=4, slots=None, *, follow=False, **limits):
        self.now, self.actions, self.step = 0.0, [], 0
        self.state = State(wanted=wanted, follow=follow, limits=Limits(**{
            "start": 100.0, "stop": 20.0, "heartbeat": 5.0, "form": 30.0, **limits}))
        for name, (host, count) in ({"a": ("host", 8)} if slots is None else slots).items():
            self(e.AgentJoined(name, host, count))

    def __call__(self, event, at=None):
        self.now = self.now if at is None else at
        self.state, actions = step(self.state, event, self.now)
        self.actions += actions
        return actions

    # What it looks like ------------------------------------------------------------------------------------
    def of(self, kind):
        return [action for action in self.actions if isinstance(action, kind)]

    def stage(self, name):
        return self.state.workers[name].stage if name in self.state.workers else None

    def names(self, *stages):
        return [name for name, _ in self.state.at(*stages)]

    @property
    def members(self):
        return self.state.round.members

    @property
    def status(self):
        return self.state.round.status

    @property
    def due(self):
        return deadline(self.state)

    @property
    def over(self):
        return self.state.phase is Phase.OVER

    @property
    def cause(self):
        (end,) = self.of(e.EndJob)
        return end.cause

    # What happens ------------------------------------------------------------------------------------------
    def ready(self, *names, step=None):
        """These say that they are ready, as they do: survivors with the job's step, newcomers with none."""
        done = ()
        for name in names:
            returning = self.stage(name) in (Stage.RETURNING, Stage.SEATED)
            held = (self.step if returning else -1) if step is None else step
            done += self(e.WorkerReady(name, held, self.state.round.number if returning else 0))
        return done

    def formed(self, *names):
        """These members of the round (all, if none is named) are connected and have the state."""
        done = ()
        for name in names or self.members:
            done += self(e.WorkerFormed(name, self.state.round.number, self.step))
        return done

    def back(self):
        """Everybody who is to come back, or has just been started, is ready; what follows is a round."""
        self.ready(*self.names(Stage.RETURNING, Stage.STARTING))
        assert self.status is Status.FORMING
        self.formed()
        return self

    def started(self):
        """The first round is active."""
        return self.back()

    def steps(self, count=1):
        """The members commit steps."""
        self.step += count
        for name in self.members:
            worker = self.state.workers[name]
            self(e.WorkerBeat(name, self.step, worker.ticks + count))
        return self

    def dies(self, name, signal=9, code=0):
        return self(e.WorkerExited(name, code, signal))

    def paused(self):
        """The members stop at the next step boundary, as they were asked to."""
        self.step += 1
        return self.ready(*self.names(Stage.SEATED))

    def finish(self, *names, stopped=False):
        done = ()
        for name in names or self.members:
            done += self(e.WorkerEnded(name, None, stopped=stopped, step=self.step))
        return done

    def wait(self, seconds, *, silent=(), stuck=(), waiting=()):
        """Time passes. All get on but ``stuck``, ``waiting`` and ``silent``; the latter, or agents, say nothing."""
        end, before = self.now + seconds, len(self.actions)
        while not self.over and self.now < end:
            at = min(end, self.now + 1.0, max(self.now, self.due))
            for name in list(self.state.agents):
                if name not in silent:
                    self(e.AgentBeat(name), at=at)
            for name in self.names(Stage.READY, Stage.SEATED, Stage.RETURNING, Stage.FINISHED):
                worker = self.state.workers[name]
                moves = name not in (*stuck, *waiting) and worker.stage is Stage.SEATED
                if name not in silent:
                    self(e.WorkerBeat(name, max(worker.step, 0), worker.ticks + moves, name in waiting), at=at)
            if at >= self.due:
                self(e.Tick(), at=at)
        return tuple(self.actions[before:])

    def to_the_end(self):
        """Nobody says anything any more; the clock alone ends the job."""
        for _ in range(1000):
            if self.over:
                return self.cause
            self(e.Tick(), at=max(self.now, self.due))
        raise AssertionError("ticks at the deadlines do not end the job")


def kinds(actions):
    return [type(action).__name__ for action in actions]


def lost(story):
    """Who was lost, and how."""
    return [(loss.worker, loss.cause.kind) for loss in story.of(e.ReportLoss)]
