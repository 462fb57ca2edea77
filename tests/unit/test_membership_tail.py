"""After the training a script goes on in every worker: nobody is late while it does, and its failure is the job's."""

from __future__ import annotations

import signal

from hvtrain.control import events, membership
from hvtrain.control.causes import Cause
from hvtrain.control.roster import Limits, Phase, State
from hvtrain.errors import ExitCode

LIMITS = Limits(start=30, stop=20, heartbeat=5, tail=True)


class Story:
    """A job of two workers whose training has ended at time 100, after 7 steps."""

    def __init__(self, limits: Limits = LIMITS):
        self.state, self.actions = State(wanted=2, limits=limits), []
        self.feed(events.AgentJoined("a", "host", 2), 0)
        for name in ("w0", "w1"):
            self.feed(events.WorkerReady(name, -1, 0), 1)
        for name in ("w0", "w1"):
            self.feed(events.WorkerFormed(name, 1, 0), 2)
        for name in ("w0", "w1"):
            self.feed(events.WorkerEnded(name, None, stopped=False, left=False, step=7), 100)
        assert self.state.phase is Phase.ENDING and self.state.dismissed

    def feed(self, event, now):
        self.state, actions = membership.step(self.state, event, now)
        self.actions += actions

    def beat(self, name, now):
        self.feed(events.WorkerBeat(name, 7, 1, False, 0.0), now)

    def exit(self, name, now, code=0, signal=0):
        self.feed(events.WorkerExited(name, code, signal), now)

    @property
    def killed(self):
        return [action.worker for action in self.actions if isinstance(action, events.KillWorker)]

    @property
    def end(self):
        (action,) = [action for action in self.actions if isinstance(action, events.EndJob)]
        return action.cause


def test_a_script_may_go_on_for_as_long_as_its_worker_gives_signs_of_life():
    story = Story()
    for now in range(101, 1000):
        story.beat("w0", now)
        if now < 300:
            story.beat("w1", now)
        if now == 300:
            story.exit("w1", now)
        if now >= (membership.deadline(story.state) or 0):
            story.feed(events.Tick(), now)
    assert not story.killed
    story.exit("w0", 1000)
    assert story.end.exit_code == ExitCode.DONE


def test_who_falls_silent_is_killed_once_nobody_else_is_at_work():
    story = Story()
    story.beat("w0", 150)
    story.feed(events.Tick(), 160)
    assert not story.killed and membership.deadline(story.state) == 170
    story.feed(events.Tick(), 170)
    assert set(story.killed) == {"w0", "w1"}
    for name in ("w0", "w1"):
        story.exit(name, 171, signal=signal.SIGKILL)
    assert story.end.exit_code == ExitCode.STALLED and "no sign of life" in story.end.reason


def test_workers_of_a_job_without_a_script_have_the_stop_timeout_as_ever():
    story = Story(Limits(start=30, stop=20, heartbeat=5))
    story.beat("w0", 119)
    story.beat("w1", 119)
    story.feed(events.Tick(), 120)
    assert set(story.killed) == {"w0", "w1"}


def test_an_exception_after_the_training_ends_the_job_with_it():
    story = Story()
    cause = Cause(ExitCode.USER_CODE, "rank 1: FileNotFoundError: results/")
    story.feed(events.WorkerEnded("w1", cause, step=7), 200)
    story.exit("w1", 201, code=1)
    story.exit("w0", 202)
    assert story.end is cause


def test_a_worker_killed_after_the_training_is_not_passed_over():
    story = Story()
    story.exit("w0", 200, signal=signal.SIGKILL)
    story.exit("w1", 201)
    assert story.end.exit_code == ExitCode.LOST_WORKERS and "before its script had ended" in story.end.reason


def test_ctrl_c_after_the_training_ends_the_script_at_once():
    story = Story()
    story.beat("w0", 200)
    story.feed(events.StopRequested(signal.SIGINT, insist=True), 200)
    assert set(story.killed) == {"w0", "w1"}
    story.exit("w0", 201, signal=signal.SIGKILL)
    story.exit("w1", 201, signal=signal.SIGKILL)
    assert story.end.exit_code == ExitCode.INTERRUPTED
