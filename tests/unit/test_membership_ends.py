"""The membership machine, story by story: stops, jobs that are not elastic, and how a job ends."""

from __future__ import annotations

import signal

import pytest

from hvtrain.control import causes
from hvtrain.control.causes import Cause
from hvtrain.control.events import (
    AgentLeaving, AgentLost, CutRound, Dismiss, JobFailed, KillWorker, StartWorker, StopRequested, TellStop, Tick,
    WorkerEnded, WorkerExited, WorkerLeaving, WorkerReady,
)
from hvtrain.control.roster import Phase, Status
from hvtrain.errors import ExitCode
from tests.support.membership_story import BUG, ECHO_CAUSE, Story, kinds


# Stops ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("number, code", [(signal.SIGINT, ExitCode.INTERRUPTED), (signal.SIGTERM, ExitCode.TERMINATED)])
def test_a_stop_lets_the_workers_finish(number, code):
    story = Story(2).started()
    assert story(StopRequested(number)) == (TellStop(("w0", "w1"), number),)
    story.finish(stopped=True)
    assert story.to_the_end().exit_code == code and "after a checkpoint" in story.cause.reason


def test_a_stop_that_comes_with_the_last_step_finds_a_job_that_is_done():
    story = Story(2).started()
    story(StopRequested(signal.SIGTERM))
    story.finish(stopped=False)
    assert story.to_the_end().exit_code == ExitCode.DONE


def test_a_stop_while_the_round_is_broken_is_told_to_the_next_one():
    story = Story(2).started().steps(3)
    story.dies("w1")
    assert story(StopRequested(15)) == (TellStop(("w0",), 15),)
    assert kinds(story.ready("w0")) == ["FormRound"], "nobody is waited for, and nobody started any more"
    assert story.formed()[-1] == TellStop(("w0",), 15)
    story.finish(stopped=True)
    assert "after a checkpoint" in story.to_the_end().reason


def test_a_stop_while_a_round_is_formed_is_told_when_it_is_active():
    story = Story(2).started()
    story.dies("w1")
    story.ready("w0", "w2")
    story(StopRequested(15))
    assert story.formed()[-1] == TellStop(("w0", "w2"), 15)


def test_a_stop_while_pausing_does_not_start_anything():
    story = Story(2).started()
    story.dies("w1"), story.ready("w0"), story.wait(2.0)
    story.formed()
    story.ready("w2")
    assert story.status is Status.PAUSING
    story(StopRequested(15))
    story.finish("w0", stopped=True)
    assert story.state.cause.exit_code == ExitCode.TERMINATED and story.of(Dismiss)[-1].salvager is None


def test_a_stop_when_nobody_is_left_is_the_end():
    story = Story(1).started()
    story(StopRequested(15))
    story.dies("w0")
    assert story.cause.exit_code == ExitCode.TERMINATED and len(story.of(StartWorker)) == 1


@pytest.mark.parametrize("ready", [0, 1])
def test_a_stop_while_starting_ends_at_once(ready):
    story = Story(2)
    story.ready(*[f"w{number}" for number in range(ready)])
    story(StopRequested(signal.SIGINT))
    assert {a.worker for a in story.of(KillWorker)} | {n for a in story.of(Dismiss) for n in a.workers} == {"w0", "w1"}
    assert story.to_the_end().exit_code == ExitCode.INTERRUPTED


def test_a_stop_before_anything_has_started_is_the_end():
    story = Story(2, {})
    story(StopRequested(signal.SIGTERM))
    assert story.cause.exit_code == ExitCode.TERMINATED


def test_a_person_who_asks_twice_does_not_wait_and_who_asks_again_kills():
    story = Story(2).started().steps(3)
    story(StopRequested(2, insist=True))
    assert story(StopRequested(2, insist=True)) == (Dismiss(("w0", "w1"), "w0"),)
    assert kinds(story(StopRequested(2, insist=True))) == ["KillWorker", "KillWorker"]
    assert story(StopRequested(2, insist=True)) == ()
    assert story.to_the_end().exit_code == ExitCode.INTERRUPTED


def test_agents_that_are_signalled_together_ask_for_one_stop():
    story = Story(2).started()
    story(StopRequested(15))
    assert story(StopRequested(15)) == ()
    assert story(StopRequested(2, insist=True)) == ()  # the first of the person
    assert story(StopRequested(15)) == ()
    assert story.state.phase is Phase.OPEN


def test_a_stop_that_takes_too_long_is_enforced_and_somebody_saves():
    story = Story(2).started().steps(3)
    story.wait(60)
    story(StopRequested(15))
    assert story.wait(19.5) == ()
    assert story.wait(1) == (Dismiss(("w0", "w1"), "w0"),)
    assert "before the workers could agree" in story.to_the_end().reason


def test_a_worker_that_stops_by_itself_leaves_the_others_their_time():
    story = Story(2).started()
    story.wait(60)
    story.finish("w1", stopped=True)
    story.wait(10)
    assert story.state.phase is Phase.OPEN
    story.finish("w0", stopped=True)
    assert story.to_the_end().exit_code == ExitCode.TERMINATED


def test_a_loss_while_stopping_is_not_made_up_for():
    story = Story(3, min_workers=3).started().steps(4)
    story(StopRequested(15))
    story.finish("w0", stopped=True)
    story.dies("w2")
    assert kinds(story.ready("w0", "w1")) == ["FormRound"]
    story.formed()
    story.finish(stopped=True)
    assert "after a checkpoint" in story.to_the_end().reason


# Not elastic --------------------------------------------------------------------------------------------
def test_without_elastic_a_loss_ends_the_job_and_the_lowest_survivor_saves():
    story = Story(3, elastic=False).started().steps(5)
    assert kinds(story.dies("w0")) == ["ReportLoss", "Dismiss"]
    assert story.of(Dismiss) == [Dismiss(("w1", "w2"), "w1")] and not story.of(CutRound)
    assert "rank 0 on host was killed by SIGKILL" in story.to_the_end().reason


def test_without_elastic_a_lost_agent_ends_the_job():
    story = Story(2, {"a": ("h1", 1), "b": ("h2", 1)}, elastic=False).started().steps(5)
    story(AgentLost("b"))
    assert "the agent b on h2 is gone" in story.to_the_end().reason


def test_without_elastic_an_echo_waits_for_the_account_of_the_one_that_failed():
    story = Story(3, elastic=False).started().steps(5)
    assert story(WorkerEnded("w0", ECHO_CAUSE)) == ()
    story(WorkerEnded("w1", BUG))
    assert story.of(Dismiss) and story.to_the_end() == BUG


def test_without_elastic_a_death_that_is_seen_while_an_echo_waits_is_the_cause():
    story = Story(3, elastic=False).started().steps(5)
    story(WorkerEnded("w0", ECHO_CAUSE))
    story(WorkerExited("w1", 0, 9))
    assert "rank 1 on host was killed by SIGKILL" in story.to_the_end().reason


def test_without_elastic_the_echo_is_the_cause_if_nothing_better_comes():
    story = Story(3, elastic=False).started().steps(5)
    story(WorkerEnded("w0", ECHO_CAUSE))
    assert story.due == 2.0
    assert story(Tick(), at=2.0) == (Dismiss(("w1", "w2"), "w1"),)
    assert story.to_the_end() == ECHO_CAUSE


@pytest.mark.parametrize("order", [
    (ECHO_CAUSE, BUG), (BUG, ECHO_CAUSE),
    (causes.lost_worker(1, "host", 1, 0, 3), BUG), (BUG, causes.lost_worker(1, "host", 1, 0, 3)),
    (causes.lost_agent("b", "host"), BUG)])
def test_without_elastic_an_exception_outranks_echoes_and_observed_deaths(order):
    story = Story(3, elastic=False).started()
    for number, cause in enumerate(order):
        story(WorkerEnded(f"w{number}", cause))
    assert story.to_the_end() == BUG


@pytest.mark.parametrize("event", [WorkerLeaving("w1"), AgentLeaving("a")])
def test_without_elastic_leaving_means_stopping(event):
    story = Story(2, {"a": ("h1", 1), "b": ("h2", 2)}, elastic=False).started()
    assert story(event) == (TellStop(("w0", "w1"), signal.SIGTERM),)


# The end ------------------------------------------------------------------------------------------------
def test_an_import_error_ends_the_job_before_it_runs():
    story = Story(2)
    story(JobFailed(Cause(ExitCode.USER_CODE, "ImportError", "Traceback", salvage=False)))
    assert len(story.of(KillWorker)) == 2 and not story.of(Dismiss)
    assert story.to_the_end().reason == "ImportError"


def test_of_two_exceptions_the_first_is_reported():
    other = Cause(ExitCode.DIVERGED, "rank 0: nan")
    story = Story(2).started()
    story(WorkerEnded("w1", other))
    story(WorkerEnded("w0", Cause(ExitCode.DIVERGED, "rank 1: nan")))
    assert story.to_the_end() == other


def test_the_one_that_is_furthest_saves():
    story = Story(3, losses_per_hour=1).started().steps(4)
    story.dies("w0")
    story.ready("w1", step=4), story.ready("w2", step=5)
    story.dies("w3")
    assert story.of(Dismiss)[-1].salvager == "w2"


def test_who_comes_back_while_the_job_ends_has_no_round_to_break():
    story = Story(3, losses_per_hour=0).started().steps(4)
    story.dies("w2")
    assert story(WorkerReady("w0", 4, 1)) == () and not story.of(CutRound)


def test_nobody_saves_what_rank_0_has_saved():
    story = Story(2, losses_per_hour=0).started().steps(4)
    story.finish("w0")
    story.dies("w1")
    assert story.of(Dismiss)[-1] == Dismiss(("w0",), salvager=None)


def test_somebody_saves_what_rank_0_could_not():
    """w2 has finished with a step that its signs of life had not told yet."""
    story = Story(3, losses_per_hour=0).started().steps(4)
    story(WorkerEnded("w2", None, step=6))
    story.dies("w0")
    assert story.of(Dismiss)[-1] == Dismiss(("w1", "w2"), salvager="w2")


def test_what_does_not_end_when_dismissed_is_killed_and_then_given_up():
    story = Story(2).started()
    story.finish()
    assert story.wait(19) == ()
    assert {a.worker for a in story.wait(2)} == {"w0", "w1"}
    assert story.to_the_end().exit_code == ExitCode.DONE and story.now == 40.0
