"""The membership machine, story by story: failures and their limits, exceptions, stops, and how a job ends."""

from __future__ import annotations

import signal

import pytest

from hvtrain.control import causes
from hvtrain.control.causes import Cause
from hvtrain.control.events import (
    AgentLeaving, AgentLost, CutRound, Dismiss, JobFailed, KillWorker, ReportLoss, StartWorker, StopRequested,
    TellStop, Tick, WorkerEnded, WorkerLeaving, WorkerReady,
)
from hvtrain.control.roster import Phase, Stage, Status
from hvtrain.errors import ExitCode
from tests.support.membership_story import BUG, ECHO_CAUSE, Story, kinds


def fails(story, name, cause=BUG):
    """A member raises, and its process ends."""
    done = story(WorkerEnded(name, cause, step=story.step))
    return done + story.dies(name, signal=0, code=1)


# A step that fails --------------------------------------------------------------------------------------
def test_a_worker_that_raises_is_reported_by_its_exception_and_replaced():
    story = Story(2).started().steps(7)
    actions = story(WorkerEnded("w1", BUG, step=7))
    assert kinds(actions) == ["ReportLoss", "CutRound", "StartWorker"] and actions[0].cause == BUG
    assert story.dies("w1", signal=0, code=1) == ()
    story.back()
    assert story.members == ("w0", "w2") and story.state.failures == 1


def test_the_same_step_failing_three_times_ends_the_job_with_the_first_traceback():
    story = Story(2).started().steps(7)
    for name in ("w1", "w2"):
        fails(story, name, Cause(ExitCode.USER_CODE, f"boom of {name}", f"traceback of {name}"))
        story.back()
    fails(story, "w3")
    assert story.state.phase is Phase.OPEN  # until the survivors have said how far they are
    assert story.ready("w0")[0] == Dismiss(("w0",), salvager="w0")
    cause = story.to_the_end()
    assert (cause.exit_code, cause.traceback) == (ExitCode.USER_CODE, "traceback of w1")
    assert "step 8 failed 3 times" in cause.reason and "boom of w1" in cause.reason


def test_failures_with_progress_between_them_do_not_add_up():
    story = Story(2).started()
    for number in range(1, 8):
        fails(story, f"w{number}")
        story.back().steps()
        assert story.state.failures == 1
    assert story.state.phase is Phase.OPEN


def test_progress_that_a_rollback_has_undone_is_none():
    """All die at step 60, go on from 50, and die at 60 again."""
    story = Story(1, failures_per_step=2).started().steps(60)
    fails(story, "w0")
    story.step = 50
    story.back()
    assert story.state.progress == 50
    story.steps(10)
    fails(story, "w1")
    assert "step 61 failed 2 times" in story.state.cause.reason


def test_losses_from_outside_count_a_third():
    """Kills seldom are the step's fault; but if nothing else happens at a step, memory may be what it lacks."""
    story = Story(2).started().steps(7)
    for number in range(1, 9):
        story.dies(f"w{number}")
        story.back()
    assert (story.state.failures, story.state.outside) == (8, 8)
    story.dies("w9")
    story.ready("w0")
    assert "step 8 failed 9 times" in story.state.cause.reason and "SIGKILL" in story.state.cause.reason


def test_a_crash_counts_in_full():
    story = Story(2).started().steps(7)
    for number in range(1, 4):
        story.dies(f"w{number}", signal=signal.SIGSEGV)
        story.ready("w0", *story.names(Stage.STARTING))
        if story.status is Status.FORMING:
            story.formed()
    assert "step 8 failed 3 times" in story.state.cause.reason


def test_the_exception_is_the_failure_though_a_peer_has_noticed_first():
    """w0 comes back by itself, for w1 has closed its connections; only then is w1 heard."""
    story = Story(2).started().steps(7)
    cut = story(WorkerReady("w0", 7, 1))[0]
    assert "rank 0 lost its connection" in cut.reason
    fails(story, "w1")
    story.back()
    assert story.state.failures == 1 and story.state.first_failure == BUG


def test_connections_that_break_again_and_again_at_one_step_end_the_job():
    story = Story(2).started().steps(7)
    for _ in range(2):
        story.ready("w0"), story.ready("w1")
        story.formed()
    story.ready("w0"), story.ready("w1")
    assert "step 8 failed 3 times" in story.state.cause.reason and "lost its connection" in story.state.cause.reason
    assert not story.of(ReportLoss)


def test_too_many_losses_within_an_hour_end_the_job():
    story = Story(2, losses_per_hour=3).started()
    for number in range(1, 4):
        story.steps()
        story.dies(f"w{number}")
        story.back()
    story.wait(5)
    story.dies("w4")
    assert "4 workers were lost within an hour, more than elastic.max_losses_per_hour" in story.state.cause.reason
    assert story.of(Dismiss)[-1] == Dismiss(("w0",), salvager="w0")


def test_losses_are_forgotten_after_an_hour():
    story = Story(2, losses_per_hour=3).started()
    for number in range(1, 30):
        story.steps()
        story.dies(f"w{number}")
        story.back()
        story.now += 1300.0
        assert len(story.state.losses) <= 3
    assert story.state.phase is Phase.OPEN


# Exceptions that do not pass ------------------------------------------------------------------------------
@pytest.mark.parametrize("code", [ExitCode.DIVERGED, ExitCode.USAGE, ExitCode.CHECKPOINT, ExitCode.ENVIRONMENT])
def test_what_would_happen_again_ends_the_job_at_once(code):
    story = Story(2).started().steps(7)
    cause = Cause(code, "no use", salvage=code != ExitCode.DIVERGED)
    assert story(WorkerEnded("w1", cause, step=7)) == (Dismiss(("w0",), "w0" if cause.salvage else None),)
    assert story.to_the_end() == cause


@pytest.mark.parametrize("how", ["raises", "exits", "crashes", "late"])
def test_before_the_first_round_a_worker_that_fails_by_itself_ends_the_job(how):
    story = Story(2)
    story.ready("w0")
    if how == "raises":
        story(WorkerEnded("w1", BUG))
    elif how == "late":
        story.wait(100)
    else:
        story.dies("w1", signal=11 if how == "crashes" else 0, code=3)
    assert story.state.phase is Phase.ENDING and not any(start.worker == "w2" for start in story.of(StartWorker))
    assert story.to_the_end().exit_code in (ExitCode.USER_CODE, ExitCode.LOST_WORKERS, ExitCode.STALLED)


def test_a_newcomer_whose_host_is_not_fit_does_not_end_the_job_of_the_others():
    story = Story(2).started().steps(7)
    story.dies("w1")
    story.ready("w0")
    fails(story, "w2", Cause(ExitCode.ENVIRONMENT, "no GPU"))
    assert story.state.phase is Phase.OPEN and story.names(Stage.STARTING) == ["w3"]


def test_newcomers_that_fail_one_after_the_other_come_at_longer_and_longer_intervals():
    story = Story(2).started().steps(7)
    story.dies("w1")
    story.ready("w0")
    for number, rest in enumerate([0, 1, 2, 4, 8]):
        actions = story.dies(f"w{number + 2}", signal=0, code=1)
        if rest:
            assert "StartWorker" not in kinds(actions + story.wait(rest - 0.5))
            actions = story.wait(0.6)
        assert [a.worker for a in actions if isinstance(a, StartWorker)] == [f"w{number + 3}"]
        if story.status is Status.FORMING:
            story.formed()
    assert story.status is Status.ACTIVE and story.members == ("w0",) and story.state.failures == 1
    story.ready("w7")
    story.paused(), story.formed()
    assert story.members == ("w0", "w7") and story.state.agents["a"].false_starts == 0


def test_newcomers_that_fail_one_after_the_other_end_a_job_that_cannot_go_on_without_them():
    story = Story(2).started().steps(7)
    story.dies("w0"), story.dies("w1")
    for name in ("w2", "w3", "w4", "w5"):
        fails(story, name)
        story.wait(1.1)
    cause = story.to_the_end()
    assert "workers in a row failed before they were ready" in cause.reason and cause.traceback == BUG.traceback


def test_what_goes_wrong_on_the_way_out_is_nobodys_business():
    story = Story(3, elastic=True).started()
    story(WorkerLeaving("w2"))
    story.ready("w3")
    story.paused(), story.formed()
    assert story.stage("w2") is Stage.LEAVING
    assert story(WorkerEnded("w2", Cause(ExitCode.CHECKPOINT, "disk full"))) == ()
    assert story.dies("w2", signal=0, code=4) == () and story.status is Status.ACTIVE


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
    assert story.state.phase is Phase.OPEN


def test_a_stop_that_takes_too_long_is_enforced_and_somebody_saves():
    story = Story(2).started().steps(3)
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
    story = Story(2, elastic=False).started()
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


def test_nobody_saves_what_rank_0_has_saved():
    story = Story(2, losses_per_hour=0).started().steps(4)
    story.finish("w0")
    story.dies("w1")
    assert story.of(Dismiss)[-1] == Dismiss(("w0",), salvager=None)


def test_somebody_saves_what_rank_0_could_not():
    story = Story(2, losses_per_hour=0).started().steps(4)
    story.finish("w1")
    story.dies("w0")
    assert story.of(Dismiss)[-1] == Dismiss(("w1",), salvager="w1")


def test_what_does_not_end_when_dismissed_is_killed_and_then_given_up():
    story = Story(2).started()
    story.finish()
    assert story.wait(19) == ()
    assert {a.worker for a in story.wait(2)} == {"w0", "w1"}
    assert story.to_the_end().exit_code == ExitCode.DONE and story.now == 40.0
