"""The membership machine: readable stories, and what must hold whatever happens in whatever order."""

from __future__ import annotations

import signal

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hvtrain.control import causes
from hvtrain.control.causes import CERTAIN, ECHO, OBSERVED, Cause
from hvtrain.control.membership import (
    AgentJoined, AgentLost, CutRound, EndJob, FormRound, JobFailed, KillWorker, Limits, Phase, StartWorker, State,
    StopRequested, TellStop, Tick, WorkerBeat, WorkerEnded, WorkerExited, WorkerReady, deadline, step,
)
from hvtrain.errors import ExitCode

LIMITS = Limits(start=100.0, stop=20.0, heartbeat=5.0, verdict=2.0)
BUG = Cause(ExitCode.USER_CODE, "rank 1: ValueError: boom", "Traceback ...", rank=1, step=7)
ECHO_CAUSE = Cause(ExitCode.LOST_WORKERS, "rank 0: connection closed by peer", weight=ECHO)


class Story:
    """A machine and its clock; collects every action."""

    def __init__(self, wanted=2, slots=None):
        self.now = 0.0
        self.state = State(wanted=wanted, limits=LIMITS, since=0.0)
        self.actions = []
        if slots is not None:
            for name, (host, count) in slots.items():
                self(AgentJoined(name, host, count))

    def __call__(self, event, at=None):
        self.now = self.now if at is None else at
        self.state, actions = step(self.state, event, self.now)
        self.actions += actions
        return actions

    def of(self, kind):
        return [action for action in self.actions if isinstance(action, kind)]

    def running(self):
        for worker in self.state.workers:
            self(WorkerReady(worker))
        assert self.state.phase is Phase.RUNNING
        return self

    @property
    def cause(self):
        (end,) = self.of(EndJob)
        return end.cause

    def ticks_to_the_end(self):
        for _ in range(50):
            if self.state.phase is Phase.OVER:
                return self.cause
            self(Tick(), at=max(self.now, deadline(self.state)))
        raise AssertionError("ticks at the deadlines do not end the job")


def two(): return Story(2, {"a": ("host", 2)})


def test_a_job_without_trouble():
    story = two()
    assert [(a.worker, a.agent, a.rank) for a in story.of(StartWorker)] == [("w0", "a", 0), ("w1", "a", 1)]
    story(WorkerReady("w1"))
    assert not story.of(FormRound)
    assert story(WorkerReady("w0")) == (FormRound(1, (("w0", "host"), ("w1", "host"))),)
    for worker in ("w0", "w1"):
        story(WorkerEnded(worker, None))
        story(WorkerExited(worker, 0, 0))
    assert story.cause.exit_code == ExitCode.DONE


def test_agents_gather_until_there_are_slots_enough_and_no_worker_more_than_wanted_starts():
    story = Story(3, {"a": ("h1", 2)})
    assert story.state.phase is Phase.GATHERING
    story(AgentJoined("b", "h2", 4))
    assert [(a.worker, a.agent, a.rank) for a in story.of(StartWorker)] == [("w0", "a", 0), ("w1", "a", 1), ("w2", "b", 2)]
    assert story(AgentJoined("late", "h3", 4)) == ()


def test_ranks_follow_the_agents_names_whoever_comes_first():
    """As horovodrun counts them: else two runs of a job would place their ranks differently."""
    story = Story(3, {"0002@h2": ("h2", 1), "0000@h1": ("h1", 1), "0001@h1": ("h1", 1)})
    assert [(a.rank, a.agent) for a in story.of(StartWorker)] == [(0, "0000@h1"), (1, "0001@h1"), (2, "0002@h2")]


def test_too_few_slots_end_the_job_when_start_timeout_has_passed():
    story = Story(3, {"a": ("h", 1)})
    assert deadline(story.state) == 100.0
    assert story(Tick(), at=99.9) == ()
    story(Tick(), at=100.0)
    assert (story.cause.exit_code, "1 of 3" in story.cause.reason) == (ExitCode.ENVIRONMENT, True)


def test_a_worker_that_does_not_become_ready_is_named_and_killed():
    story = two()
    story(WorkerReady("w0"))
    story(Tick(), at=100.0)
    assert {a.worker for a in story.of(KillWorker)} == {"w0", "w1"}
    for worker in ("w0", "w1"):
        story(WorkerExited(worker, 0, signal.SIGKILL))
    assert story.cause.exit_code == ExitCode.STALLED and "rank 1" in story.cause.reason


def test_a_killed_worker_breaks_the_round_and_the_lowest_survivor_saves():
    story = Story(3, {"a": ("host", 3)}).running()
    (cut,) = story(WorkerExited("w0", 0, signal.SIGKILL))
    assert cut == CutRound(("w1", "w2"), "w1")
    for worker in ("w1", "w2"):
        story(WorkerEnded(worker, ECHO_CAUSE))
        story(WorkerExited(worker, 144, 0))
    assert "rank 0 on host was killed by SIGKILL" in story.cause.reason


def test_an_echo_waits_for_the_verdict_of_the_one_that_failed():
    story = two().running()
    assert story(WorkerEnded("w0", ECHO_CAUSE)) == ()
    story(WorkerEnded("w1", BUG), at=1.0)
    assert not story.of(CutRound)  # nobody is left to be cut
    for worker in ("w0", "w1"):
        story(WorkerExited(worker, 1, 0))
    assert story.cause == BUG


def test_without_a_verdict_the_echo_is_the_cause():
    story = Story(3, {"a": ("host", 3)}).running()
    story(WorkerEnded("w0", ECHO_CAUSE))
    assert deadline(story.state) == 2.0
    story(WorkerBeat("w1", 1))
    # w2 has not completed a step: it may be stuck in init() and has nothing that could be lost
    assert story(Tick(), at=2.0) == (CutRound(("w1", "w2"), "w1"), KillWorker("w2", "a"))
    assert story.ticks_to_the_end() == ECHO_CAUSE


def test_an_agent_that_goes_after_its_workers_have_finished_does_not_spoil_the_job():
    story = two().running()
    for name in ("w0", "w1"):
        story(WorkerEnded(name, None))
    story(AgentLost("a"))
    assert story.cause is not None and story.cause.exit_code == 0


@pytest.mark.parametrize("order", [
    (ECHO_CAUSE, BUG), (BUG, ECHO_CAUSE),
    (causes.lost_worker(1, "host", 1, 0, 3), BUG), (BUG, causes.lost_worker(1, "host", 1, 0, 3)),
    (causes.lost_agent("b", "host"), BUG)])
def test_an_exception_outranks_echoes_and_observed_deaths(order):
    story = Story(3, {"a": ("host", 3)}).running()
    for number, cause in enumerate(order):
        story(WorkerEnded(f"w{number}", cause))
    assert story.ticks_to_the_end() == BUG


def test_the_exception_wins_when_the_death_of_the_same_worker_was_seen_first():
    story = two().running()
    story(WorkerExited("w1", 1, 0))
    story(WorkerEnded("w1", BUG))
    story(WorkerEnded("w0", ECHO_CAUSE))
    story(WorkerExited("w0", 144, 0))
    assert story.cause == BUG


def test_of_two_exceptions_the_first_is_reported():
    other = Cause(ExitCode.USER_CODE, "rank 0: KeyError")
    story = two().running()
    story(WorkerEnded("w1", BUG))
    story(WorkerEnded("w0", other))
    assert story.ticks_to_the_end() == BUG


def test_a_diverged_job_cuts_but_saves_nothing():
    story = two().running()
    assert story(WorkerEnded("w1", Cause(ExitCode.DIVERGED, "the loss is nan", salvage=False))) == (
        CutRound(("w0",), None),)


def test_silence_is_a_stall_and_names_the_silent_rank():
    story = two().running()
    story(WorkerBeat("w0", 3), at=4.0)
    assert deadline(story.state) == 5.0
    story(Tick(), at=5.0)
    assert "rank 1" in story.ticks_to_the_end().reason and story.cause.exit_code == ExitCode.STALLED


def test_what_does_not_end_after_a_cut_is_killed():
    story = two().running()
    story(WorkerEnded("w1", BUG))
    assert not story.of(KillWorker)
    story(Tick(), at=20.0)
    assert {a.worker for a in story.of(KillWorker)} == {"w0", "w1"}
    for worker in ("w0", "w1"):
        story(WorkerExited(worker, 0, signal.SIGKILL))
    assert story.cause == BUG


@pytest.mark.parametrize("number, code", [(signal.SIGINT, ExitCode.INTERRUPTED), (signal.SIGTERM, ExitCode.TERMINATED)])
def test_a_stop_lets_the_workers_finish(number, code):
    story = two().running()
    assert story(StopRequested(number)) == (TellStop(("w0", "w1"), number),)
    for worker in ("w0", "w1"):
        story(WorkerEnded(worker, None, stopped=True))
        story(WorkerExited(worker, 0, 0))
    assert story.cause.exit_code == code and "after a checkpoint" in story.cause.reason


def test_a_person_who_asks_twice_does_not_wait():
    story = two().running()
    story(StopRequested(signal.SIGINT, insist=True))
    assert isinstance(story(StopRequested(signal.SIGINT, insist=True))[0], CutRound)
    assert story.state.phase is Phase.ENDING
    assert story.ticks_to_the_end().exit_code == ExitCode.INTERRUPTED


def test_agents_that_are_signalled_together_ask_for_one_stop():
    story = two().running()
    story(StopRequested(signal.SIGTERM))
    assert story(StopRequested(signal.SIGTERM)) == ()
    assert story(StopRequested(signal.SIGINT, insist=True)) == ()  # the first of the person
    assert story.state.phase is Phase.RUNNING


def test_a_stop_that_takes_too_long_is_enforced():
    story = two().running()
    story(StopRequested(signal.SIGTERM))
    for second in range(1, 21):
        for worker in ("w0", "w1"):
            story(WorkerBeat(worker, 1), at=float(second))
    story(Tick(), at=20.0)
    assert story.state.phase is Phase.ENDING and story.state.cut
    assert "before the workers could agree" in story.ticks_to_the_end().reason


def test_a_worker_that_was_signalled_itself_leaves_the_others_time_to_finish():
    """The stop began when the first worker ended, not when the round did."""
    story = two().running()
    for second in range(1, 60):
        for worker in ("w0", "w1"):
            story(WorkerBeat(worker, 1), at=float(second))
    story(WorkerEnded("w1", None, stopped=True))
    story(Tick(), at=59.5)
    assert story.state.phase is Phase.RUNNING
    story(WorkerEnded("w0", None, stopped=True), at=60.0)
    for worker in ("w0", "w1"):
        story(WorkerExited(worker, 0, 0))
    assert story.cause.exit_code == ExitCode.TERMINATED and "after a checkpoint" in story.cause.reason


@pytest.mark.parametrize("ready", [0, 1])
def test_a_stop_while_starting_ends_at_once(ready):
    story = two()
    for number in range(ready):
        story(WorkerReady(f"w{number}"))
    story(StopRequested(signal.SIGINT))
    assert {a.worker for a in story.of(KillWorker)} == {"w0", "w1"}


def test_a_stop_before_anything_has_started_is_the_end():
    story = Story(2)
    story(StopRequested(signal.SIGTERM))
    assert story.cause.exit_code == ExitCode.TERMINATED


def test_a_lost_agent_takes_its_workers_along():
    story = Story(2, {"a": ("h1", 1), "b": ("h2", 1)}).running()
    assert story(AgentLost("b")) == (CutRound(("w0",), "w0"),)
    story(WorkerEnded("w0", ECHO_CAUSE))
    story(WorkerExited("w0", 144, 0))
    assert "the agent b on h2 is gone" in story.cause.reason


def test_an_agent_without_workers_may_go():
    story = Story(1, {"a": ("h1", 1), "spare": ("h2", 1)}).running()
    assert story(AgentLost("spare")) == () and story.state.phase is Phase.RUNNING


def test_an_import_error_ends_the_job_before_it_runs():
    story = two()
    story(JobFailed(Cause(ExitCode.USER_CODE, "ImportError", "Traceback", salvage=False)))
    assert len(story.of(KillWorker)) == 2 and not story.of(CutRound)
    assert story.ticks_to_the_end().reason == "ImportError"


def test_workers_that_never_exit_do_not_keep_a_finished_job():
    story = two().running()
    for worker in ("w0", "w1"):
        story(WorkerEnded(worker, None))
    assert story.ticks_to_the_end().exit_code == ExitCode.DONE and story.now == 20.0


def test_events_about_strangers_change_nothing():
    story = two().running()
    before = story.state
    for event in (WorkerReady("x"), WorkerBeat("x", 1), WorkerEnded("x", BUG), WorkerExited("x", 1, 0), AgentLost("x")):
        assert story(event) == () and story.state == before


def test_after_the_end_nothing_happens():
    story = Story(1, {"a": ("h", 1)})
    story(StopRequested(signal.SIGINT))
    story.ticks_to_the_end()
    before = story.state
    for event in (StopRequested(2), Tick(), AgentLost("a"), WorkerExited("w0", 0, 9), JobFailed(BUG)):
        assert story(event) == () and story.state == before
    assert deadline(story.state) is None


def test_a_thousand_agents():
    story = Story(1000, {f"a{n:04d}": (f"h{n // 4}", 1) for n in range(1000)})
    ranks = [a.rank for a in story.of(StartWorker)]
    assert ranks == list(range(1000))


class AnyOrder(RuleBasedStateMachine):
    """Random events in any order, each told at most as often as it could really happen."""

    def __init__(self):
        super().__init__()
        self.now = 0.0
        self.state = State(wanted=4, limits=LIMITS)
        self.ends = []
        self.rounds = []
        self.started = []
        self.failed = False  # whether the job can no longer end well
        self.worst = None  # the first certain cause that was told before the end

    def feed(self, event):
        over = self.state.phase is Phase.OVER
        self.state, actions = step(self.state, event, self.now)
        assert not (over and actions)
        for action in actions:
            if isinstance(action, EndJob):
                self.ends.append(action.cause)
            elif isinstance(action, FormRound):
                self.rounds.append(action)
            elif isinstance(action, StartWorker):
                self.started.append(action)
            elif isinstance(action, (CutRound, TellStop)):
                assert set(action.workers) <= set(self.state.workers)
                assert not any(self.state.workers[name].gone for name in action.workers)
            elif isinstance(action, KillWorker):
                assert not self.state.workers[action.worker].gone

    @rule(agent=st.sampled_from("abcd"), slots=st.integers(1, 3))
    def agent_joins(self, agent, slots):
        if agent not in self.state.agents:
            self.feed(AgentJoined(agent, f"host-{agent}", slots))

    @rule(agent=st.sampled_from("abcd"))
    def agent_goes(self, agent):
        self.feed(AgentLost(agent))

    @rule(worker=st.integers(0, 4))
    def ready(self, worker):
        self.feed(WorkerReady(f"w{worker}"))

    @rule()
    def all_ready(self):
        for worker in list(self.state.workers):
            self.feed(WorkerReady(worker))

    @rule(worker=st.integers(0, 4), count=st.integers(0, 100))
    def beat(self, worker, count):
        self.feed(WorkerBeat(f"w{worker}", count))

    @rule(worker=st.integers(0, 4), weight=st.sampled_from([None, ECHO, OBSERVED, CERTAIN]), stopped=st.booleans())
    def ended(self, worker, weight, stopped):
        name = f"w{worker}"
        known = self.state.workers.get(name)
        cause = None if weight is None else Cause(1, f"{name} said {weight}", weight=weight)
        if known is not None and not known.told and cause is not None and self.state.phase is not Phase.OVER:
            self.failed = True
            if weight == CERTAIN:
                self.note(cause)
        self.feed(WorkerEnded(name, cause, stopped))

    @rule(worker=st.integers(0, 4), number=st.sampled_from([0, 9, 11]))
    def exits(self, worker, number):
        self.feed(WorkerExited(f"w{worker}", 0 if number else 1, number))

    @rule(insist=st.booleans())
    def stop(self, insist):
        self.feed(StopRequested(signal.SIGTERM, insist))

    @rule()
    def job_fails(self):
        cause = Cause(3, "disk", weight=CERTAIN)
        if self.state.phase is not Phase.OVER:
            self.failed = True
            self.note(cause)
        self.feed(JobFailed(cause))

    @rule(seconds=st.sampled_from([0.1, 2.0, 5.0, 20.0]))
    def time_passes(self, seconds):
        due = deadline(self.state)
        self.now += seconds
        if due is not None and self.now >= due:
            self.feed(Tick())

    @precondition(lambda self: self.state.phase is not Phase.OVER)
    @rule()
    def tick_at_the_deadline(self):
        self.now = max(self.now, deadline(self.state))
        self.feed(Tick())

    def note(self, cause):
        if self.state.cause is None or self.state.cause.weight < CERTAIN:
            self.worst = self.worst or cause

    @invariant()
    def one_end_at_most(self):
        assert len(self.ends) == (self.state.phase is Phase.OVER)

    @invariant()
    def every_wait_has_a_deadline(self):
        assert (deadline(self.state) is None) == (self.state.phase is Phase.OVER)

    @invariant()
    def ranks_have_no_gaps(self):
        if self.state.workers:
            assert sorted(w.rank for w in self.state.workers.values()) == [0, 1, 2, 3]
            assert [a.rank for a in self.started] == [0, 1, 2, 3]
        assert len(self.rounds) <= 1
        for formed in self.rounds:
            assert [self.state.workers[name].rank for name, _ in formed.members] == [0, 1, 2, 3]

    @invariant()
    def a_certain_cause_stands(self):
        if self.worst is not None and self.ends:
            assert self.ends[0].weight == CERTAIN and self.ends[0] == self.worst

    @invariant()
    def done_only_if_all_ended_well(self):
        if self.ends and self.ends[0].exit_code == ExitCode.DONE:
            assert not self.failed and all(w.ended_well for w in self.state.workers.values())

    def teardown(self):
        """From wherever it is, once something has failed or stopped, time alone ends the job."""
        self.feed(StopRequested(signal.SIGTERM, insist=True))
        self.feed(StopRequested(signal.SIGTERM, insist=True))
        assert self.state.phase in (Phase.ENDING, Phase.OVER)
        for _ in range(20):
            due = deadline(self.state)
            if due is None:
                break
            before = (self.state, self.now)
            self.now = max(self.now, due)
            self.feed(Tick())
            assert (self.state, self.now) != before, "a Tick at the deadline changed nothing"
        assert self.state.phase is Phase.OVER
        self.one_end_at_most(), self.a_certain_cause_stands(), self.done_only_if_all_ended_well()


AnyOrder.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase
