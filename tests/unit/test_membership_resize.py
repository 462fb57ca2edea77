"""The membership machine, story by story: spares, growing and shrinking, and leaving at a step boundary."""

from __future__ import annotations

import signal

import pytest

from hvtrain.control.events import (
    AgentJoined, AgentLeaving, AgentLost, CutRound, Dismiss, FormRound, KillWorker, PauseRound, ReleaseAgent,
    ReportLoss, ScaleRequested, StartWorker, TellStop, WorkerLeaving,
)
from hvtrain.control.roster import Phase, Stage, Status
from hvtrain.errors import ExitCode
from tests.support.membership_story import Story, kinds

TWO_HOSTS = {"a": ("h1", 2), "b": ("h2", 2)}


# Spares -----------------------------------------------------------------------------------------------
def test_a_spare_takes_a_lost_ones_place_without_a_wait():
    story = Story(2, spares=1)
    assert len(story.of(StartWorker)) == 3
    story.ready("w0", "w1", "w2")
    assert story.members == ("w0", "w1")
    story.formed()
    assert story.stage("w2") is Stage.READY and not story.of(Dismiss)
    loss, cut, start = story.dies("w0")
    assert start.worker == "w3"  # the next spare
    assert kinds(story.ready("w1")) == ["FormRound"] and story.members == ("w2", "w1")
    story.formed()
    assert story.ready("w3") == () and story.stage("w3") is Stage.READY


def test_a_spare_that_dies_disturbs_nobody():
    story = Story(2, spares=1).started()
    story.ready("w2")
    assert kinds(story.dies("w2")) == ["ReportLoss", "StartWorker"]
    assert story.status is Status.ACTIVE


def test_a_spare_that_is_still_on_its_way_does_not_delay_growth():
    story = Story(2, spares=1).started()
    story(ScaleRequested(3))
    assert story.names(Stage.STARTING) == ["w3"]
    assert story.status is Status.PAUSING


# Scaling ------------------------------------------------------------------------------------------------
def test_scaling_up_disturbs_once_when_all_newcomers_are_ready():
    story = Story(2).started().steps(3)
    assert kinds(story(ScaleRequested(4))) == ["StartWorker", "StartWorker"]
    assert story.ready("w2") == ()  # the other one is on its way
    assert story.ready("w3") == (PauseRound(("w0", "w1"), "grow"),)
    assert kinds(story.paused()) == ["FormRound"] and story.members == ("w0", "w1", "w2", "w3")
    story.formed()
    assert story.status is Status.ACTIVE and len(story.of(FormRound)) == 2


def test_a_newcomer_that_dies_is_not_what_the_others_wait_for():
    story = Story(2, slots={"a": ("h", 4)}).started()
    story(ScaleRequested(4))
    story.ready("w2")
    story.dies("w3"), story.dies("w4")  # the agent rests now: nobody is on the way
    assert story.status is Status.PAUSING
    story.paused()
    assert story.members == ("w0", "w1", "w2")


def test_scaling_down_keeps_the_first_ones_and_sends_the_others_home_once_the_round_is_active():
    story = Story(4).started().steps(3)
    assert story(ScaleRequested(2)) == (PauseRound(("w0", "w1", "w2", "w3"), "shrink"),)
    story.paused()
    assert story.members == ("w0", "w1") and not story.of(Dismiss)
    story.formed("w0")
    assert Dismiss(("w2", "w3")) in story.formed("w1")
    assert kinds(story.dies("w2", signal=0) + story.dies("w3", signal=0)) == []


def test_who_is_not_needed_any_more_is_at_hand_while_the_smaller_round_is_formed():
    story = Story(3).started()
    story(ScaleRequested(2))
    story.paused()
    assert story.members == ("w0", "w1")
    story.dies("w1")
    assert kinds(story.ready("w0")) == ["FormRound"] and story.members == ("w0", "w2")


def test_scaling_down_with_spares_makes_spares():
    story = Story(3, spares=1, slots={"a": ("h", 3)}).started()
    story(ScaleRequested(2))
    story.paused(), story.formed()
    assert not story.of(Dismiss) and story.stage("w2") is Stage.READY


@pytest.mark.parametrize("wish, size", [(9, 3), (1, 2), (3, 3)])
def test_no_more_than_max_workers_and_no_fewer_than_min_workers_are_aimed_at(wish, size):
    story = Story(2, min_workers=2, max_workers=3).started()
    story(ScaleRequested(wish))
    assert story.state.target == size


def test_a_job_that_follows_its_agents_leaves_its_spares_their_slots():
    """But none of those that it was started for."""
    story = Story(2, {"a": ("h1", 2)}, follow=True, spares=1)
    assert story.state.target == 2
    story(AgentJoined("b", "h2", 1))
    assert story.state.target == 2 and len(story.of(StartWorker)) == 3
    story(AgentJoined("c", "h3", 2))
    assert story.state.target == 4


def test_a_job_that_follows_its_agents_takes_every_slot_up_to_max_workers():
    story = Story(2, {"a": ("h1", 2)}, follow=True, max_workers=5).started()
    assert kinds(story(AgentJoined("b", "h2", 2))) == ["StartWorker", "StartWorker"]
    assert kinds(story(AgentJoined("c", "h3", 2))) == ["StartWorker"]
    story.ready("w2", "w3", "w4")
    story.paused(), story.formed()
    assert len(story.members) == 5
    story(AgentLost("a"))
    story.back()
    assert len(story.members) == 4


# Bounds -------------------------------------------------------------------------------------------------
def test_below_min_workers_the_job_waits_and_goes_on_when_somebody_comes():
    story = Story(2, {"a": ("h1", 1), "b": ("h2", 1)}, min_workers=2).started().steps(5)
    story(AgentLost("b"))
    story.ready("w0")
    assert story.wait(90) == () and story.status is Status.BROKEN
    assert kinds(story(AgentJoined("c", "h3", 1))) == ["StartWorker"]
    assert story.wait(30) == ()  # it is on its way, and has a deadline of its own
    assert kinds(story.ready("w2")) == ["FormRound"]
    assert story.state.hungry_since is None


def test_below_min_workers_for_too_long_the_job_ends_and_a_survivor_saves():
    story = Story(2, {"a": ("h1", 1), "b": ("h2", 1)}, min_workers=2).started().steps(5)
    story(AgentLost("b"))
    story.ready("w0")
    assert story.wait(101)[-1] == Dismiss(("w0",), salvager="w0")
    story.dies("w0", signal=0)
    assert story.cause.exit_code == ExitCode.LOST_WORKERS
    assert "only 1 of at least 2 workers (elastic.min_workers)" in story.cause.reason


def test_without_any_agent_the_job_waits_as_long():
    story = Story(1, {"a": ("h1", 1)}).started()
    story(AgentLost("a"))
    assert story.due <= 100.0
    assert "only 0 of at least 1" in story.to_the_end().reason and story.now == 100.0


# Leaving ------------------------------------------------------------------------------------------------
def test_a_worker_that_leaves_is_replaced_first_and_goes_at_a_step_boundary():
    story = Story(3).started().steps(4)
    assert story(WorkerLeaving("w1")) == (StartWorker("w3", "a", rank=3, local_rank=3),)
    assert story.wait(1.5) == ()
    assert story.ready("w3") == (PauseRound(("w0", "w1", "w2"), "leave"),)
    story.paused()
    assert story.members == ("w0", "w3", "w2")
    assert Dismiss(("w1",)) in story.formed()
    assert story.dies("w1", signal=0) == () and not story.of(ReportLoss) and not story.of(CutRound)


def test_a_worker_that_leaves_does_not_wait_longer_than_replace_timeout():
    story = Story(3).started()
    story(WorkerLeaving("w1"))
    assert kinds(story.wait(2.0)) == ["PauseRound"]
    assert kinds(story.paused()) == ["FormRound"], "the replacement has had its time"
    assert story.members == ("w0", "w2")


def test_asking_to_leave_again_does_not_put_it_off():
    story = Story(3).started()
    story(WorkerLeaving("w1"))
    story.wait(1.0)
    story(WorkerLeaving("w1"))
    assert kinds(story.wait(1.0)) == ["PauseRound"]


def test_members_that_pause_do_not_wait_for_those_who_were_asked_for_meanwhile():
    story = Story(2, spares=1).started()
    story.dies("w1"), story.back()  # a moment ago
    story.ready("w3")
    story(WorkerLeaving("w0"))
    assert story.status is Status.PAUSING
    story(ScaleRequested(4))
    assert story.names(Stage.STARTING) and kinds(story.paused()) == ["FormRound"]


def test_a_worker_that_is_to_leave_before_the_first_round_is_sent_home():
    story = Story(2)
    story.ready("w0")
    assert story(WorkerLeaving("w0")) == (StartWorker("w2", "a", 2, 2), Dismiss(("w0",)))
    story.ready("w1", "w2")
    assert story.members == ("w1", "w2")


def test_a_worker_that_does_not_go_when_it_may_is_killed():
    story = Story(2).started()
    story(WorkerLeaving("w1"))
    story.ready("w2"), story.paused(), story.formed()
    story.wait(15)
    assert not story.of(KillWorker)
    assert story.wait(6) == (KillWorker("w1", "a", stacks=True),) and not story.of(ReportLoss)


def test_a_worker_that_is_to_leave_while_it_starts_is_replaced_at_once():
    story = Story(2).started()
    story.dies("w1")
    assert story(WorkerLeaving("w2")) == (KillWorker("w2", "a"), StartWorker("w3", "a", 1, 1))


def test_the_only_one_hands_its_state_over_before_it_leaves():
    """Two rounds: one with both, in which the state is passed on, and one without the leaver."""
    story = Story(1, {"a": ("h1", 1), "b": ("h2", 1)}).started().steps(8)
    assert story(AgentLeaving("a")) == (StartWorker("w1", "b", rank=1, local_rank=0),)
    assert kinds(story.ready("w1")) == ["PauseRound"]
    story.paused()
    assert story.members == ("w0", "w1") and not story.of(Dismiss)
    assert kinds(story.formed()) == ["RoundActive", "PauseRound"]
    story.paused()
    assert story.members == ("w1",)
    assert Dismiss(("w0",)) in story.formed()
    assert story.dies("w0", signal=0) == (ReleaseAgent("a"),)


def test_who_is_to_leave_stays_while_it_alone_holds_the_state():
    """w1 dies while w0 waits for its replacement: w0 comes back with the only state there is."""
    story = Story(2, {"a": ("h1", 1), "b": ("h2", 2)}).started().steps(5)
    story(AgentLeaving("a"))
    story.dies("w1")
    story.ready("w0")
    assert story.stage("w0") is Stage.READY and not story.of(Dismiss)
    story.ready("w2", "w3")
    assert set(story.members) == {"w0", "w2", "w3"}  # one more than wanted, for the time of the hand-over
    story.formed()
    story.paused()
    assert set(story.members) == {"w2", "w3"}
    assert Dismiss(("w0",)) in story.formed()


def test_an_agent_that_leaves_is_released_when_its_workers_have_gone():
    story = Story(4, {**TWO_HOSTS, "c": ("h3", 2)}).started().steps(4)
    starts = story(AgentLeaving("a"))
    assert [start.agent for start in starts] == ["c", "c"]
    story.ready("w4", "w5")
    story.paused()
    assert story.members == ("w4", "w5", "w2", "w3")
    story.formed()
    assert story.dies("w0", signal=0) == ()
    assert story.dies("w1", signal=0) == (ReleaseAgent("a"),)
    assert story(AgentLost("a")) and story.status is Status.ACTIVE and not story.of(ReportLoss)


def test_an_agent_that_leaves_and_has_no_workers_is_released_at_once():
    story = Story(2, {"a": ("h1", 2), "b": ("h2", 2)}).started()
    assert story(AgentLeaving("b")) == (ReleaseAgent("b"),)
    story(WorkerLeaving("w0"))
    assert all(start.agent == "a" for start in story.of(StartWorker))


def test_an_agent_that_leaves_is_not_released_while_a_worker_of_it_is_on_its_way_out():
    story = Story(4, TWO_HOSTS).started()
    story(ScaleRequested(3))
    story.paused(), story.formed()
    assert story.stage("w3") is Stage.LEAVING
    story.dies("w2")
    assert not story.of(ReleaseAgent)
    story(AgentLeaving("b"))
    assert not story.of(ReleaseAgent)


def test_without_slots_for_the_leavers_workers_the_job_shrinks():
    story = Story(4, TWO_HOSTS).started()
    assert kinds(story(AgentLeaving("b"))) == ["PauseRound"]
    story.paused()
    assert story.members == ("w0", "w1")


def test_an_agent_that_the_job_cannot_do_without_stops_the_job():
    story = Story(4, TWO_HOSTS, min_workers=3).started()
    assert story(AgentLeaving("b")) == (TellStop(("w0", "w1", "w2", "w3"), signal.SIGTERM),)
    story.finish(stopped=True)
    assert story.to_the_end().exit_code == ExitCode.TERMINATED and not story.of(ReleaseAgent)


def test_all_agents_that_are_signalled_at_once_stop_the_job():
    story = Story(4, TWO_HOSTS).started()
    assert kinds(story(AgentLeaving("a"))) == ["PauseRound"]
    assert kinds(story(AgentLeaving("b"))) == ["TellStop"]
    story.finish(stopped=True)
    assert story.to_the_end().exit_code == ExitCode.TERMINATED


def test_an_agent_that_leaves_before_the_job_begins_is_not_counted():
    story = Story(4, {"a": ("h1", 2)})
    story(AgentJoined("b", "h2", 1))
    story(AgentLeaving("b"))
    assert story(AgentJoined("c", "h3", 1)) == () and story.state.phase is Phase.GATHERING
    assert [start.agent for start in story(AgentJoined("d", "h4", 1))] == ["a", "a", "c", "d"]


def test_leavers_that_must_wait_for_each_others_replacements_get_both():
    """With four needed, w4 is no use without w5; to send it home would begin the wait anew, for ever."""
    story = Story(4, min_workers=4).started()
    story(WorkerLeaving("w0")), story(WorkerLeaving("w1"))
    assert story.ready("w4") == () and story.stage("w4") is Stage.READY
    assert story.wait(10) == ()
    assert kinds(story.ready("w5")) == ["PauseRound"]
    story.paused()
    assert set(story.members) == {"w2", "w3", "w4", "w5"}


def test_nobody_leaves_when_others_have_finished_already():
    story = Story(3).started().steps(9)
    story(WorkerLeaving("w2"))
    story.finish("w0")
    assert not story.of(PauseRound) and story.wait(3) == ()
    assert story.due > story.now, "a wait that has ended must not be waited for"
    story.finish("w1", "w2")
    assert story.state.cause.exit_code == ExitCode.DONE
