"""The membership machine, story by story: how a job begins, loses workers at every stage, and has them replaced."""

from __future__ import annotations

import signal

import pytest

from hvtrain.control.causes import Cause
from hvtrain.control.events import (
    AgentBeat, AgentJoined, AgentLeaving, AgentLost, CutRound, Dismiss, DropAgent, FormRound, KillWorker, ReportLoss,
    RoundActive, ScaleRequested, StartWorker, StopRequested, Tick, WorkerBeat, WorkerEnded, WorkerExited,
    WorkerFormed, WorkerLeaving, WorkerReady,
)
from hvtrain.control.roster import Phase, Stage, Status
from hvtrain.errors import ExitCode
from tests.support.membership_story import BUG, Story, kinds

FOUR = ("w0", "w1", "w2", "w3")


# Beginning --------------------------------------------------------------------------------------------
def test_a_job_without_trouble():
    story = Story(2)
    assert story.of(StartWorker) == [StartWorker("w0", "a", 0, 0), StartWorker("w1", "a", 1, 1)]
    assert story.ready("w1") == ()
    assert story.ready("w0") == (FormRound(1, (("w0", "host"), ("w1", "host")), fresh=True),)
    assert story.formed("w1") == ()
    assert story.formed("w0") == (RoundActive(1, step=0, before=0),)
    story.steps(5)
    assert story.state.progress == 5
    assert story.finish("w0") == ()
    assert story.finish("w1") == (Dismiss(("w0", "w1")),)
    assert kinds(story.dies("w0", signal=0)) == []
    assert kinds(story.dies("w1", signal=0)) == ["EndJob"]
    assert story.cause.exit_code == ExitCode.DONE and not story.of(ReportLoss)


def test_agents_gather_until_there_are_slots_enough_and_no_worker_more_than_wanted_starts():
    story = Story(3, {"a": ("h1", 2)})
    assert story.state.phase is Phase.GATHERING
    story(AgentJoined("b", "h2", 4))
    started = [(start.worker, start.agent, start.rank) for start in story.of(StartWorker)]
    assert started == [("w0", "a", 0), ("w1", "a", 1), ("w2", "b", 2)]
    assert story(AgentJoined("late", "h3", 4)) == ()


def test_ranks_follow_the_agents_names_whoever_comes_first():
    """As horovodrun counts them: else two runs of a job would place their ranks differently."""
    story = Story(3, {"0002@h2": ("h2", 1), "0000@h1": ("h1", 1), "0001@h1": ("h1", 1)})
    assert [(a.rank, a.agent, a.local_rank) for a in story.of(StartWorker)] == [
        (0, "0000@h1", 0), (1, "0001@h1", 1), (2, "0002@h2", 0)]


def test_when_too_few_slots_have_come_an_elastic_job_goes_on_with_those_that_are_there():
    story = Story(3, {"a": ("h", 2)})
    assert story.due == 100.0 and story(Tick(), at=99.9) == ()
    assert kinds(story(Tick(), at=100.0)) == ["StartWorker", "StartWorker"]
    assert kinds(story.ready("w0", "w1")) == ["FormRound"]


@pytest.mark.parametrize("limits", [{"elastic": False}, {"min_workers": 3}])
def test_too_few_slots_end_the_job_when_it_cannot_do_with_them(limits):
    story = Story(3, {"a": ("h", 2)}, **limits)
    story(Tick(), at=100.0)
    assert (story.cause.exit_code, "2 of 3" in story.cause.reason) == (ExitCode.ENVIRONMENT, True)


def test_an_agent_that_goes_before_there_are_enough_is_not_counted():
    story = Story(3, {"a": ("h1", 2)})
    assert story(AgentLost("a")) == (DropAgent("a"),)
    assert story(AgentJoined("b", "h2", 1)) == ()
    assert kinds(story(AgentJoined("c", "h3", 2))) == ["StartWorker"] * 3


def test_the_first_round_waits_for_all_however_long_they_take_to_start():
    story = Story(2)
    story.ready("w0")
    assert story.wait(99) == () and kinds(story.ready("w1")) == ["FormRound"]


# Losing a worker, stage by stage ------------------------------------------------------------------------
def test_starting_a_worker_killed_before_the_first_round_is_replaced():
    story = Story(2)
    story.ready("w0")
    assert kinds(story.dies("w1")) == ["ReportLoss", "StartWorker"]
    assert story.ready("w2") == (FormRound(1, (("w0", "host"), ("w2", "host"))),)


def test_ready_a_worker_killed_while_it_waits_for_the_others_is_replaced():
    story = Story(2)
    story.ready("w0")
    assert story.dies("w0")[1] == StartWorker("w2", "a", rank=0, local_rank=0)
    story.ready("w1", "w2")
    assert story.members == ("w1", "w2")


def test_forming_a_round_that_loses_a_member_is_called_off_and_formed_again():
    story = Story()
    story.ready(*FOUR)
    story.formed("w0")
    loss, cut, start = story.dies("w2")
    assert (cut.workers, start) == (("w0", "w1", "w3"), StartWorker("w4", "a", 2, 2))
    story.ready("w0", "w1", "w3", "w4")
    assert story.members == ("w0", "w1", "w4", "w3") and story.state.failures == 0
    story.formed()
    assert story.status is Status.ACTIVE and story.state.round.number == 2


def test_active_survivors_keep_their_ranks_and_the_replacement_takes_the_lost_one():
    story = Story().started().steps(7)
    loss, cut, start = story.dies("w1")
    assert loss.worker == "w1" and loss.rank == 1 and loss.cause.kind == "killed"
    assert "rank 1 on host was killed by SIGKILL" in loss.cause.reason
    assert cut == CutRound(1, ("w0", "w2", "w3"), loss.cause.reason)
    assert start == StartWorker("w4", "a", rank=1, local_rank=1)
    assert story.ready("w3", "w4", "w0") == ()
    assert story.ready("w2") == (FormRound(2, tuple((name, "host") for name in ("w0", "w4", "w2", "w3")), fresh=False),)
    assert story.formed()[-1] == RoundActive(2, step=7, before=7)


def test_active_a_late_replacement_is_not_waited_for_and_joins_with_one_pause():
    story = Story().started().steps(7)
    story.dies("w1")
    story.ready("w0", "w2", "w3")
    assert story.wait(1.9) == () and story.status is Status.BROKEN
    form, = story.wait(0.1)
    assert story.members == ("w0", "w2", "w3")
    story.formed()
    pause, = story.ready("w4")
    assert (pause.workers, pause.reason) == (("w0", "w2", "w3"), "grow")
    assert kinds(story.paused()) == ["FormRound"]
    assert story.members == ("w0", "w2", "w3", "w4") and story.formed()[-1].step == 8


def test_pausing_a_member_that_dies_breaks_the_round_and_those_who_paused_are_told_too():
    story = Story(slots={"a": ("h", 2), "b": ("i", 2)}, wanted=4).started()
    story(AgentLost("b"))
    story.back()
    story(AgentJoined("c", "j", 1))
    story.ready("w4")
    assert story.status is Status.PAUSING
    story.ready("w0")
    loss, cut, start = story.dies("w1")
    assert cut.workers == ("w0",) and story.status is Status.BROKEN
    assert kinds(story.ready("w5")) == ["FormRound"]
    assert story.members == ("w0", "w5", "w4")


def test_broken_a_second_death_does_not_count_as_a_second_failure():
    story = Story().started().steps(3)
    story.dies("w1")
    assert kinds(story.dies("w3")) == ["ReportLoss", "StartWorker"]
    story.back()
    assert story.members == ("w0", "w4", "w2", "w5") and story.state.failures == 1


def test_a_replacement_that_is_killed_while_it_starts_is_replaced_itself():
    story = Story().started()
    story.dies("w1")
    assert kinds(story.dies("w4")) == ["ReportLoss", "StartWorker"]
    story.back()
    assert story.members == ("w0", "w5", "w2", "w3")


def test_a_finished_worker_that_dies_has_done_its_part():
    story = Story(2).started().steps(9)
    story.finish("w0")
    assert not set(kinds(story.dies("w0"))) & {"ReportLoss", "CutRound"}
    story.finish("w1")
    story.dies("w1", signal=0)
    assert story.to_the_end().exit_code == ExitCode.DONE


def test_a_loss_after_others_have_finished_brings_them_back():
    story = Story(3).started().steps(9)
    story.finish("w0", "w1")
    loss, cut, start = story.dies("w2")
    assert cut.workers == ("w0", "w1") and story.stage("w0") is Stage.RETURNING
    story.back()
    assert story.members == ("w0", "w1", "w3")
    story.finish()
    assert story.state.cause.exit_code == ExitCode.DONE


# Several, all -------------------------------------------------------------------------------------------
def test_all_but_one_are_lost():
    story = Story().started().steps(3)
    for name in ("w0", "w2", "w3"):
        story.dies(name)
    story.back()
    assert story.members == ("w4", "w1", "w5", "w6") and story.state.failures == 1


def test_all_are_lost_and_the_new_ones_say_how_far_back_they_go():
    story = Story(2).started().steps(60)
    story.dies("w0"), story.dies("w1")
    assert kinds(story.ready("w2", "w3")) == ["FormRound"] and not story.of(FormRound)[-1].fresh
    story.step = 50
    assert story.formed()[-1] == RoundActive(2, step=50, before=60) and story.state.progress == 50


def test_all_are_lost_and_the_new_ones_wait_for_each_other():
    """Nobody could train on meanwhile; to begin with a part of them would only cost another round."""
    story = Story(2).started().steps(60)
    story.dies("w0"), story.dies("w1")
    story.ready("w2")
    assert story.wait(90) == () and kinds(story.ready("w3")) == ["FormRound"]


def test_a_lost_agent_takes_its_workers_along_and_others_run_in_their_place():
    story = Story(2, {"a": ("h1", 1), "b": ("h2", 2)}).started()
    actions = story(AgentLost("a"))
    assert kinds(actions) == ["DropAgent", "Dismiss", "ReportLoss", "CutRound", "StartWorker"]
    assert "the agent a on h1 is gone" in actions[2].cause.reason and actions[4].agent == "b"
    story.back()
    assert story.members == ("w2", "w1") and "w0" not in story.state.workers


def test_an_agent_that_comes_back_begins_anew():
    story = Story(2, {"a": ("h1", 1), "b": ("h2", 1)}).started()
    story(AgentLost("a"))
    story.ready("w1")
    assert story.formed() and story.members == ("w1",)
    assert story(AgentJoined("a", "h1", 1)) == (StartWorker("w2", "a", rank=1, local_rank=0),)
    assert kinds(story.ready("w2")) == ["PauseRound"]
    story.paused()
    assert story.members == ("w1", "w2")


def test_an_agent_that_has_lost_its_only_worker_stays():
    story = Story(2, {"a": ("h1", 1), "b": ("h2", 1)}).started()
    assert kinds(story.dies("w1")) == ["ReportLoss", "CutRound", "StartWorker"]


def test_an_agent_that_goes_with_a_worker_that_has_finished_costs_nothing():
    story = Story(2, {"a": ("h1", 1), "b": ("h2", 1)}).started()
    story.finish("w1")
    assert kinds(story(AgentLost("b"))) == ["DropAgent", "Dismiss"] and story.status is Status.ACTIVE
    story.finish("w0")
    assert story.state.cause.exit_code == ExitCode.DONE


def test_an_agent_without_workers_may_go():
    story = Story(1, {"a": ("h1", 1), "spare": ("h2", 1)}).started()
    assert story(AgentLost("spare")) == (DropAgent("spare"),) and story.status is Status.ACTIVE


def test_an_agent_that_goes_after_its_workers_have_finished_does_not_spoil_the_job():
    story = Story(2).started()
    story.finish()
    story(AgentLost("a"))
    assert story.cause.exit_code == ExitCode.DONE


def test_a_device_that_a_lost_worker_used_is_used_again():
    story = Story(2, {"a": ("h", 2), "b": ("h", 2)}).started()
    assert story.dies("w1")[-1] == StartWorker("w2", "a", rank=1, local_rank=1)


# Who is told what -----------------------------------------------------------------------------------------
def test_what_strangers_say_changes_nothing():
    story = Story(2).started()
    before = story.state.workers, story.state.round
    for event in (WorkerReady("x"), WorkerFormed("x", 1, 3), WorkerBeat("x", 1), WorkerEnded("x", BUG),
                  WorkerExited("x", 1, 0), WorkerLeaving("x"), AgentLost("x"), AgentLeaving("x"), AgentBeat("x"),
                  WorkerFormed("w0", 7, 3)):
        assert story(event) == () and (story.state.workers, story.state.round) == before


def test_after_the_end_nothing_happens():
    story = Story(1)
    story(StopRequested(signal.SIGINT))
    story.to_the_end()
    before = story.state
    for event in (StopRequested(2), Tick(), AgentLost("a"), WorkerExited("w0", 0, 9), AgentJoined("b", "h", 1)):
        assert story(event) == () and story.state is before
    assert story.due is None


def test_the_latest_step_is_never_left_out_of_a_smaller_round():
    """w2 alone has committed the last step; were the first ones in line to go on, it would be taken again."""
    story = Story(3).started().steps(4)
    story(ScaleRequested(1))
    assert story.status is Status.PAUSING
    story.dies("w1")
    story.ready("w0", step=4)
    story.ready("w2", step=5)
    assert story.members == ("w2",)
    story.step = 5
    story.formed()
    assert story.stage("w0") is Stage.LEAVING and not any(isinstance(a, KillWorker) for a in story.actions)


def test_the_kind_of_a_death_is_said():
    story = Story().started()
    story.dies("w0", signal=11), story.dies("w1", signal=0, code=7), story.dies("w2", signal=15)
    assert [loss.cause.kind for loss in story.of(ReportLoss)] == ["crashed", "exited", "killed"]
    assert isinstance(story.of(ReportLoss)[1].cause, Cause) and "exit status 7" in story.of(ReportLoss)[1].cause.reason
