"""The membership machine, story by story: messages that cross, come late, come twice, or come from nobody."""

from __future__ import annotations

from hvtrain.control.events import (
    AgentLeaving, AgentLost, KillWorker, ScaleRequested, StartWorker, WorkerBeat, WorkerEnded, WorkerExited,
    WorkerFormed, WorkerLeaving, WorkerReady,
)
from hvtrain.control.roster import Phase, Stage, Status
from hvtrain.errors import ExitCode
from tests.support.membership_story import Story, kinds, lost


def test_finished_crosses_cut():
    story = Story(2).started().steps(9)
    story.dies("w1")
    assert story.finish("w0") == () and story.stage("w0") is Stage.RETURNING
    assert story.state.phase is Phase.OPEN
    story.back()
    assert story.members == ("w0", "w2")


def test_finished_that_comes_after_ready_is_of_an_old_round():
    story = Story(2).started().steps(9)
    story.dies("w1")
    story.ready("w0")
    story.finish("w0")
    assert story.stage("w0") is Stage.READY
    story.back()
    assert story.members == ("w0", "w2")


def test_ready_crosses_cut():
    """w0 notices by itself, at the same time as the coordinator."""
    story = Story(3).started()
    story.dies("w1")
    assert story(WorkerReady("w0", 0, round=1)) == ()
    story.ready("w2", "w3")
    assert story.members == ("w0", "w3", "w2")


def test_ready_that_was_said_before_the_seat_came_does_not_break_the_new_round():
    """w0's connection was broken: it repeats that it is ready, is seated, takes that seat, and is cut with it.

    When it then says that it is back from round 2 it has a seat in round 3 already, which is on its way to it. To
    break round 3 for that would be the beginning of an endless chase.
    """
    story = Story(2).started().steps(3)
    story.dies("w1")
    story.ready("w0", "w2")
    assert story.state.round.number == 2
    cut, form = story(WorkerReady("w0", 3, round=1)), story.ready("w2", step=-1)
    assert kinds(cut) == ["CutRound"] and kinds(form) == ["FormRound"] and story.state.round.number == 3
    assert story(WorkerReady("w0", 3, round=2)) == () and story.status is Status.FORMING
    story.formed()
    assert story.status is Status.ACTIVE and story.state.failures == 1


def test_a_seat_that_may_be_lost_is_not_held_against_the_network():
    story = Story(2)
    story.ready("w0", "w1")
    assert kinds(story(WorkerReady("w0", -1, round=0))) == ["CutRound"] and story.state.unformed == 0


def test_when_some_have_finished_and_others_could_not_all_come_back():
    """The last step: w0 has got through it, w1 has lost its connection in it, and a pause had been asked for."""
    story = Story(2).started().steps(9)
    story(ScaleRequested(3))
    story.ready("w2")
    assert story.status is Status.PAUSING
    story.step = 10
    assert story.finish("w0") == ()
    actions = story.ready("w1", step=9)
    assert actions[0].workers == ("w0", "w1") and story.stage("w0") is Stage.RETURNING
    story.ready("w0", step=10)
    story.formed(), story.finish()
    assert story.state.cause.exit_code == ExitCode.DONE


def test_ready_of_a_worker_that_was_dismissed_meanwhile():
    story = Story(2, {"a": ("h1", 1), "b": ("h2", 2)}).started()
    story(WorkerLeaving("w0"))
    story.ready("w2"), story.paused(), story.formed()
    assert story.stage("w0") is Stage.LEAVING
    assert story(WorkerReady("w0", 1, round=1)) == () and story.stage("w0") is Stage.LEAVING


def test_formed_of_a_broken_round():
    story = Story(2)
    story.ready("w0", "w1")
    story.dies("w1")
    assert story(WorkerFormed("w0", 1, 0)) == () and story.status is Status.BROKEN
    story.ready("w0", "w2")
    story(WorkerFormed("w0", 1, 0))
    assert not story.state.round.formed


def test_formed_twice_or_by_a_stranger_does_not_complete_a_round():
    story = Story(3)
    story.ready("w0", "w1", "w2")
    story.formed("w0"), story.formed("w0")
    story(WorkerFormed("w9", 1, 0))
    assert story.status is Status.FORMING
    story.formed("w1", "w2")
    assert story.status is Status.ACTIVE


def test_exited_of_a_doomed_worker_comes_late():
    story = Story(2).started()
    story.wait(5, silent=["w1"])
    story.back()
    number = story.state.round.number
    assert story(WorkerExited("w1", 0, 9)) == () and story.state.round.number == number
    assert "w1" not in story.state.workers and lost(story) == [("w1", "silent")]


def test_exited_of_a_worker_whose_agent_is_gone():
    story = Story(2, {"a": ("h1", 1), "b": ("h2", 2)}).started()
    story(AgentLost("a"))
    assert story(WorkerExited("w0", 0, 9)) == () and lost(story) == [("w0", "agent_lost")]


def test_a_doomed_worker_speaks_on():
    story = Story(2).started()
    story.wait(5, silent=["w1"])
    for event in (WorkerReady("w1", 3, 1), WorkerEnded("w1", None, step=3), WorkerLeaving("w1"),
                  WorkerBeat("w1", 3, 9)):
        assert story(event) == () and story.stage("w1") is Stage.DOOMED


def test_a_member_that_ends_unasked_breaks_its_round():
    story = Story(2).started()
    actions = story(WorkerEnded("w1", None, stopped=True, left=True))
    assert kinds(actions) == ["CutRound", "StartWorker"] and story.stage("w1") is Stage.LEAVING
    assert story.wait(15) == () and story.stage("w1") is Stage.LEAVING, "it has its time to go"
    assert not [a for a in story.actions if isinstance(a, KillWorker)]


def test_leaving_twice_and_leaving_an_agent_twice():
    story = Story(2, {"a": ("h1", 1), "b": ("h2", 1), "c": ("h3", 1)}).started()
    assert story(AgentLeaving("a")) == (StartWorker("w2", "c", rank=2, local_rank=0),)
    since = story.state.workers["w0"].since
    story.now += 1
    assert story(AgentLeaving("a")) == () and story.state.workers["w0"].since == since
