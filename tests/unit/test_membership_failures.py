"""The membership machine, story by story: failures and their limits, exceptions, and newcomers that fail."""

from __future__ import annotations

import signal

import pytest

from hvtrain.control.causes import Cause
from hvtrain.control.events import Dismiss, ReportLoss, StartWorker, WorkerEnded, WorkerLeaving, WorkerReady
from hvtrain.control.roster import Phase, Stage, Status
from hvtrain.errors import ExitCode
from tests.support.membership_story import BUG, Story, kinds


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


def test_losses_from_outside_are_forgotten_with_the_next_step():
    story = Story(2, failures_per_step=1).started()
    for number in range(1, 8):
        story.dies(f"w{number}")
        story.back()
        if number % 2 == 0:
            story.steps()
    assert story.state.phase is Phase.OPEN


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


def test_a_kill_is_the_failure_though_a_peer_has_noticed_first():
    story = Story(3).started().steps(7)
    story(WorkerReady("w0", 7, 1))
    story.dies("w1")
    story.back()
    assert story.state.first_failure.kind == "killed" and (story.state.failures, story.state.outside) == (1, 1)


def test_the_step_that_a_worker_failed_at_may_be_known_from_nobody_else():
    story = Story(1, failures_per_step=2).started().steps(7)
    story(WorkerEnded("w0", BUG, step=9))
    assert story.state.failed_step == 9


def test_connections_that_break_again_and_again_at_one_step_end_the_job():
    story = Story(2).started().steps(7)
    for _ in range(2):
        story.ready("w0"), story.ready("w1")
        story.formed()
    story.ready("w0"), story.ready("w1")
    assert "step 8 failed 3 times" in story.state.cause.reason and "lost its connection" in story.state.cause.reason
    assert not story.of(ReportLoss)


def test_too_many_losses_within_an_hour_end_the_job():
    story = Story(2, losses_per_hour=3)
    story.now = 10_000.0
    story.started()
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


@pytest.mark.parametrize("code, phase", [(ExitCode.ENVIRONMENT, Phase.OPEN), (ExitCode.USAGE, Phase.ENDING)])
def test_a_newcomer_whose_host_is_not_fit_does_not_end_the_job_of_the_others(code, phase):
    story = Story(2).started().steps(7)
    story.dies("w1")
    story.ready("w0")
    fails(story, "w2", Cause(code, "no GPU"))
    assert story.state.phase is phase


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
    assert story.state.false_starts == 5
    story.ready("w7")
    assert (story.state.agents["a"].false_starts, story.state.false_starts) == (0, 0)
    story.paused(), story.formed()
    assert story.members == ("w0", "w7")


def test_newcomers_that_fail_one_after_the_other_end_a_job_that_cannot_go_on_without_them():
    story = Story(2).started().steps(7)
    story.dies("w0"), story.dies("w1")
    for name in ("w2", "w3", "w4", "w5"):
        fails(story, name)
        story.wait(1.1)
    cause = story.to_the_end()
    assert "workers in a row failed before they were ready" in cause.reason and cause.traceback == BUG.traceback


def test_newcomers_that_are_killed_from_outside_only_come_later():
    story = Story(1).started().steps(7)
    for number in range(5):
        story.dies(f"w{number}")
        story.wait(10)
    assert story.state.phase is Phase.OPEN and story.names(Stage.STARTING) == ["w5"]
    story.ready("w5")
    assert story.members == ("w5",)


def test_another_agent_steps_in_for_one_that_rests():
    story = Story(2, {"a": ("h1", 2), "b": ("h2", 2)}).started()
    story.dies("w1")
    assert story.dies("w2", signal=0, code=1)[-1].agent == "a"
    assert story.dies("w3", signal=0, code=1)[-1].agent == "b"


def test_what_goes_wrong_on_the_way_out_is_nobodys_business():
    story = Story(3, elastic=True).started()
    story(WorkerLeaving("w2"))
    story.ready("w3")
    story.paused(), story.formed()
    assert story.stage("w2") is Stage.LEAVING
    assert story(WorkerEnded("w2", Cause(ExitCode.CHECKPOINT, "disk full"))) == ()
    assert story.dies("w2", signal=0, code=4) == () and story.status is Status.ACTIVE
