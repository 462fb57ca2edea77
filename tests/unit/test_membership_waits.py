"""The membership machine, story by story: what it waits for and for how long, and whom it blames."""

from __future__ import annotations

import pytest

from hvtrain.control.events import (
    AgentBeat, CutRound, DropAgent, KillWorker, PauseRound, ReportLoss, ScaleRequested, Tick, WorkerBeat,
)
from hvtrain.control.roster import FORM_ATTEMPTS, Stage, Status
from hvtrain.errors import ExitCode
from tests.support.membership_story import Story, kinds, lost


# Silence ------------------------------------------------------------------------------------------------
def test_a_silent_member_is_killed_and_replaced():
    story = Story().started().steps(3)
    actions = story.wait(5, silent=["w2"])
    assert lost(story) == [("w2", "silent")]
    assert actions[1] == KillWorker("w2", "a", stacks=True)
    assert [a.workers for a in actions if isinstance(a, CutRound)] == [("w0", "w1", "w3")]
    story.back()  # though the process is still there: nobody waits for its end
    assert story.members == ("w0", "w1", "w4", "w3") and story.dies("w2") == ()


@pytest.mark.parametrize("stage", [Stage.READY, Stage.RETURNING, Stage.FINISHED])
def test_a_worker_that_falls_silent_elsewhere_is_lost_as_well(stage):
    story = Story(3, spares=1).started()
    name = {Stage.READY: "w3", Stage.RETURNING: "w1", Stage.FINISHED: "w0"}[stage]
    if stage is Stage.READY:
        story.ready("w3")
    elif stage is Stage.RETURNING:
        story.dies("w2")
    else:
        story.finish("w0")
    assert story.stage(name) is stage
    story.wait(5, silent=[name], waiting=["w1", "w2"])
    assert (name, "silent") in lost(story) and story.stage(name) is Stage.DOOMED


def test_two_that_fall_silent_at_once_are_lost_at_once():
    story = Story().started()
    story.wait(5, silent=["w1", "w2"])
    assert lost(story) == [("w1", "silent"), ("w2", "silent")] and len(story.of(CutRound)) == 1


def test_a_silent_agent_is_dropped_with_its_workers():
    story = Story(2, {"a": ("h1", 1), "b": ("h2", 2)}).started()
    actions = story.wait(5, silent=["a"])
    assert kinds(actions) == ["DropAgent", "Dismiss", "ReportLoss", "CutRound", "StartWorker"]
    assert actions[0] == DropAgent("a") and "a" not in story.state.agents


def test_a_worker_that_does_not_die_is_killed_again():
    story = Story(2).started()
    story.wait(5, silent=["w1"])
    story.back()
    kills = [a for a in story.wait(41, silent=["w1"]) if isinstance(a, KillWorker)]
    assert kills == [KillWorker("w1", "a")] * 2 and story.members == ("w0", "w2")


# Who holds the others up ----------------------------------------------------------------------------------
def test_a_rank_that_gets_nothing_done_is_stuck_and_those_that_wait_for_it_are_not():
    story = Story().started().steps(3)
    actions = story.wait(20, stuck=["w1"], waiting=["w0", "w2", "w3"])
    assert lost(story) == [("w1", "stuck")] and actions[1] == KillWorker("w1", "a", stacks=True)
    assert "rank 1 is alive but has got nothing done for 20 s" in actions[0].cause.reason
    story.back()
    assert story.members == ("w0", "w4", "w2", "w3") and story.state.failures == 1


def test_what_a_rank_has_done_is_counted_not_that_it_says_so_again():
    story = Story(2).started()
    for second in range(1, 22):
        story.now = float(second)
        story(AgentBeat("a")), story(WorkerBeat("w0", 3, 7)), story(WorkerBeat("w1", 3, second)), story(Tick())
    assert lost(story) == [("w0", "stuck")]


def test_two_stuck_ranks_are_told_apart_from_the_waiting_ones_and_named_with_their_own_times():
    story = Story().started()
    story.wait(20, stuck=["w1", "w2"], waiting=["w0", "w3"])
    assert lost(story) == [("w1", "stuck"), ("w2", "stuck")]
    assert all("for 20 s" in loss.cause.reason for loss in story.of(ReportLoss))


def test_a_rank_that_has_waited_long_is_not_stuck_when_its_wait_ends():
    """It is about to take the step: from here on its time counts."""
    story = Story(2).started()
    for _ in range(3):
        story.wait(15, waiting=["w0"])
    story(WorkerBeat("w0", 0, story.state.workers["w0"].ticks, waiting=False))
    assert story(Tick()) == () and story.wait(19, stuck=["w0"]) == () and not lost(story)
    story.wait(2, stuck=["w0"])
    assert lost(story) == [("w0", "stuck")]


def test_a_rank_that_has_formed_early_is_not_stuck_because_others_have_formed_late():
    story = Story(2)
    story.ready("w0", "w1")
    story.formed("w0")
    story.wait(25, stuck=["w0"])
    assert story.formed("w1") and story.status is Status.ACTIVE
    assert story(Tick()) == () and story.wait(19, stuck=["w0"]) == ()


def test_the_patience_grows_with_the_slowest_step_and_is_not_lost_between_slow_steps():
    story = Story(2).started()
    story(WorkerBeat("w0", 1, 50, slowest=8.0))
    story.wait(70, stuck=["w1"], waiting=["w0"])  # beats of steps that are not slow do not shorten it
    assert not lost(story)
    story.wait(10, stuck=["w1"], waiting=["w0"])
    assert lost(story) == [("w1", "stuck")]


def test_the_patience_shrinks_again_in_time():
    story = Story(2).started()
    story(WorkerBeat("w0", 1, 50, slowest=8.0))
    story.wait(3600)
    assert story.state.step_limit == 20.0


def test_after_failures_at_a_step_it_gets_more_time_until_it_is_done():
    story = Story(2).started().steps(3)
    story.wait(20, stuck=["w1"], waiting=["w0"])
    story.back()
    assert story.state.step_limit == 40.0
    story.steps()
    assert story.state.step_limit == 20.0


def test_when_all_wait_for_each_other_nobody_is_blamed_and_all_try_again():
    story = Story(2).started().steps(3)
    actions = story.wait(43, waiting=["w0", "w1"])
    assert kinds(actions) == ["CutRound"] and "all workers have waited for each other" in actions[0].reason
    story.back()
    assert story.members == ("w0", "w1") and story.state.failures == 1
    story.wait(90, waiting=["w0", "w1"]), story.back()
    story.wait(170, waiting=["w0", "w1"]), story.ready("w0", "w1")
    assert "step 4 failed 3 times" in story.state.cause.reason and not lost(story)


def test_without_elastic_all_waiting_ends_the_job():
    story = Story(2, elastic=False).started().steps(3)
    story.wait(43, waiting=["w0", "w1"])
    assert story.state.cause.kind == "no_progress"


def test_who_does_not_come_back_from_a_broken_round_is_lost_though_it_seems_to_wait():
    """Its Cut may have been lost with a connection."""
    story = Story(3).started().steps(3)
    story.dies("w1")
    story.ready("w0", "w3")
    story.wait(19, waiting=["w2"])
    assert story.status is Status.BROKEN and len(lost(story)) == 1
    story.wait(2, waiting=["w2"])
    assert lost(story)[1] == ("w2", "stuck") and story.status is Status.FORMING
    assert story.members == ("w0", "w3")


def test_signs_of_life_of_an_old_step_do_not_keep_a_returning_worker():
    story = Story(2).started()
    story.dies("w1")
    for _ in range(45):
        story.now += 0.5
        story(AgentBeat("a")), story(WorkerBeat("w0", 9, 0)), story(Tick())
    assert ("w0", "stuck") in lost(story)


# Getting ready, forming -----------------------------------------------------------------------------------
def test_a_worker_that_does_not_become_ready_is_named_and_killed():
    story = Story(2)
    story.ready("w0")
    story.wait(100)
    assert KillWorker("w1", "a", stacks=True) in story.actions
    assert "rank 1 did not build" in story.to_the_end().reason and story.cause.exit_code == ExitCode.STALLED


def test_a_replacement_that_does_not_become_ready_is_replaced():
    story = Story(2).started()
    story.dies("w1"), story.ready("w0")
    story.wait(3), story.formed()
    actions = story.wait(98)
    assert kinds(actions) == ["ReportLoss", "KillWorker", "StartWorker"] and story.status is Status.ACTIVE


def test_a_round_that_cannot_be_formed_is_tried_again_and_then_given_up():
    story = Story(2)
    story.ready("w0", "w1")
    for attempt in range(1, FORM_ATTEMPTS):
        assert [type(a) for a in story.wait(30, stuck=["w0", "w1"])] == [CutRound]
        assert kinds(story.ready("w0", "w1")) == ["FormRound"] and story.state.unformed == attempt
    story.wait(30, stuck=["w0", "w1"])
    assert "could not connect to each other in 3 attempts" in story.state.cause.reason


def test_connections_that_fail_at_once_do_not_end_a_job_within_a_moment():
    """A network that is gone for some seconds: the third attempt comes only when comm.timeout has passed."""
    story = Story(2)
    story.ready("w0", "w1")
    story.ready("w0"), story.ready("w1")
    assert story.state.round.number == 2
    story.ready("w0"), story.ready("w1")
    assert story.status is Status.BROKEN and kinds(story.wait(29.5)) == []
    assert kinds(story.wait(1)) == ["FormRound"]
    story.formed()
    assert story.status is Status.ACTIVE and story.state.unformed == 0


def test_a_peer_that_dies_while_a_round_is_formed_is_not_held_against_the_network():
    story = Story(2)
    story.ready("w0", "w1")
    story.ready("w0")  # it has noticed before anybody
    assert story.state.unformed == 1
    story.dies("w1")
    assert story.state.unformed == 0
    story.back()
    assert story.members == ("w0", "w2")


def test_a_state_that_takes_long_to_send_may_take_long_while_somebody_gets_on():
    story = Story(2)
    story.ready("w0", "w1")
    for number in range(1, 5):
        story.wait(25, stuck=["w0", "w1"])
        story(WorkerBeat("w1", 0, number))
    story.wait(25, stuck=["w0", "w1"])
    assert story.status is Status.FORMING and story.state.unformed == 0
    story.wait(6, stuck=["w0", "w1"])
    assert story.status is Status.BROKEN


def test_a_pause_that_got_lost_is_asked_for_again():
    story = Story(1).started()
    story(ScaleRequested(2))
    story.ready("w1")
    assert story.status is Status.PAUSING
    assert story.wait(21) == (PauseRound(("w0",), "resize"),)


# Deadlines ------------------------------------------------------------------------------------------------
def test_to_look_too_early_changes_nothing():
    story = Story().started()
    before = {**vars(story.state), "due": None}
    for _ in range(5):
        assert story(Tick()) == () and {**vars(story.state), "due": None} == before
    assert story.due == 5.0


def test_signs_of_life_cost_one_look_a_second_at_most():
    story, looks = Story().started(), 0
    for tenth in range(1, 101):
        story.now = tenth / 10
        for name in story.members:
            story(WorkerBeat(name, 0, tenth))
        story(AgentBeat("a"))
        if story.due <= story.now:
            story(Tick())
            looks += 1
    assert 1 <= looks <= 10 and not lost(story)
