"""A newcomer whom the others cannot reach is left out; it does not end the job of those that train together."""

from __future__ import annotations

import pytest

from hvtrain.control.events import (
    AgentJoined, CutRound, Dismiss, FormRound, KillWorker, RefuseAgent, ReportLeftOut, ReportLoss, StartWorker,
    WorkerFormed, WorkerReady,
)
from hvtrain.control.roster import FORM_ATTEMPTS, HOUR, Phase, Stage, Status
from hvtrain.errors import ExitCode
from tests.support.membership_story import Story

HERE, THERE = {"a": ("h1", 1), "b": ("h2", 1)}, AgentJoined("c", "h3", 1)


def unreachable(story, name, reason="connect [10.0.0.9]:4711: Connection timed out"):
    """The round that is being formed fails as often as may be: ``name`` has no connection to the others."""
    for _ in range(FORM_ATTEMPTS):
        assert story.status is Status.FORMING and name in story.members
        actions = story(WorkerReady(name, -1, story.state.round.number, reason))
        story.ready(*story.names(Stage.RETURNING))
        if story.state.retry_at > story.now:
            story.wait(story.state.retry_at - story.now)
    return actions


def grown(story):
    """An agent on a third host has joined a job that takes all slots; its worker is in the round that is formed."""
    story(THERE)
    story.ready(*story.names(Stage.STARTING))
    story.paused()
    return story


def test_the_job_goes_on_with_those_that_train_together():
    """It ended with exit code 145, because of a machine behind a firewall that somebody had added."""
    story = grown(Story(2, HERE, follow=True).started().steps(7))
    actions = unreachable(story, "w2")
    (told,) = [a for a in actions if isinstance(a, Dismiss)]
    assert told.workers == ("w2",) and told.salvager is None and story.stage("w2") is Stage.LEAVING
    assert [a.workers for a in actions if isinstance(a, CutRound)] == [("w0", "w1")]
    assert story.members == ("w0", "w1") and story.status is Status.FORMING
    story.formed()
    assert story.status is Status.ACTIVE and story.state.phase is Phase.OPEN and not story.of(ReportLoss)
    assert story.state.unformed == 0 and story.state.failures == 0 and story.state.losses == ()


def test_people_and_its_agent_are_told_who_did_not_reach_whom_and_what_to_look_at():
    story = grown(Story(2, HERE, follow=True).started())
    unreachable(story, "w2")
    (report,), (refused,) = story.of(ReportLeftOut), story.of(RefuseAgent)
    assert (report.host, report.again) == ("h3", False) and (refused.agent, refused.reason) == ("c", report.reason)
    for words in ("a new worker on h3", "that train on h1, h2 ", "in 3 attempts", "10.0.0.9", "launch.interface=NAME"):
        assert words in report.reason, words
    assert story.of(Dismiss)[-1].reason == report.reason


def test_an_agent_that_was_refused_gets_no_workers_and_its_slots_do_not_count():
    story = grown(Story(2, HERE, follow=True).started())
    unreachable(story, "w2")
    story.formed()
    assert story.state.agents.slots == story.state.target == 2
    story.dies("w2", signal=0)
    story.wait(2 * HOUR)
    assert [start.worker for start in story.of(StartWorker)] == ["w0", "w1", "w2"] and story.status is Status.ACTIVE


def test_its_other_workers_go_too_those_that_wait_and_those_that_still_build():
    story = Story(2, HERE, follow=True, spares=1).started()
    story(AgentJoined("c", "h3", 4))
    story.ready("w2"), story.ready("w3"), story.ready("w4")
    story.paused()
    assert story.stage("w5") is Stage.STARTING and story.members == ("w0", "w1", "w2", "w3", "w4")
    unreachable(story, "w3")
    assert story.of(Dismiss)[-1].workers == ("w2", "w3", "w4")
    assert [kill.worker for kill in story.of(KillWorker)] == ["w5"] and story.members == ("w0", "w1")


def test_a_replacement_on_a_host_that_was_reachable_comes_again_after_a_rest():
    story = Story(2, HERE, start=50.0).started().steps(3)
    story.dies("w1")
    story.ready("w0"), story.ready("w2")
    unreachable(story, "w2")
    assert story.members == ("w0",) and not story.of(RefuseAgent)
    assert story.of(ReportLeftOut)[-1].again
    story.formed()
    story.dies("w2", signal=0, code=1)
    actions = story.wait(49)
    assert not [a for a in actions if isinstance(a, StartWorker)]
    assert story.wait(2)[-1] == StartWorker("w3", "b", 1, 0)
    story.ready("w3"), story.paused(), story.formed()
    assert story.members == ("w0", "w3") and story.state.unreached == {}


def test_replacements_that_are_never_reached_do_not_disturb_the_others_for_ever():
    """Three times an hour, at most; the host's other worker, which trains on, does not make that forgotten."""
    story = Story(3, {"a": ("h1", 1), "b": ("h2", 2)}, start=50.0).started()
    story.dies("w1")
    story.ready("w0", "w2")
    ended = story.now + HOUR
    left = 0
    while story.now < ended - 1:
        for name in story.names(Stage.STARTING):
            story.ready(name)
            if story.status is Status.PAUSING:
                story.paused()
            unreachable(story, name)
            story.formed()
            story.dies(name, signal=0, code=1)
            left += 1
        story.wait(5)
    assert left == 3 == len(story.of(ReportLeftOut)) and story.status is Status.ACTIVE
    assert story.members == ("w0", "w2")
    story.wait(400)
    assert story.names(Stage.STARTING), "the hour is over"


def test_who_comes_from_an_unknown_host_again_and_again_is_refused_as_it_comes():
    """A service that starts ``hvtrain agent`` anew each time that it ends."""
    story = Story(2, HERE, follow=True).started()
    for attempt in range(FORM_ATTEMPTS):
        story(AgentJoined(f"c{attempt}", "h3", 1))
        (name,) = story.names(Stage.STARTING)
        story.ready(name)
        story.paused()
        unreachable(story, name)
        story.formed()
        story.dies(name, signal=0, code=1)
    rounds = len(story.of(FormRound))
    (refused,) = story(AgentJoined("late", "h3", 1))
    assert refused.agent == "late" and "3 times within an hour" in refused.reason
    assert not story.names(Stage.STARTING) and len(story.of(FormRound)) == rounds
    story.wait(HOUR)
    story(AgentJoined("later", "h3", 1))
    assert story.names(Stage.STARTING), "by then its network may have been mended"


def test_of_two_new_hosts_the_unknown_one_goes_first():
    """A replacement on a host that was reachable is not to suffer for a stranger."""
    story = Story(2, HERE, follow=True).started()
    story.dies("w1")
    story(THERE)
    story.ready("w0"), story.ready("w2"), story.ready("w3")
    assert story.members == ("w0", "w2", "w3")
    unreachable(story, "w2")
    assert [report.host for report in story.of(ReportLeftOut)] == ["h3"] and story.members == ("w0", "w2")
    story.formed()
    assert story.status is Status.ACTIVE


@pytest.mark.parametrize("least, goes_on", [(2, True), (3, False)])
def test_a_job_that_would_be_too_small_without_it_ends_as_before(least, goes_on):
    """With what was said of the last attempt, which a person would otherwise look for in the workers' logs."""
    story = Story(3, {**HERE, "c": ("h3", 1)}, min_workers=least).started()
    story.dies("w2")
    story.ready("w0", "w1"), story.ready("w3")
    unreachable(story, "w3")
    assert (story.state.phase is Phase.OPEN) is goes_on
    if not goes_on:
        cause = story.to_the_end()
        assert cause.exit_code == ExitCode.STALLED and "10.0.0.9" in cause.reason


def test_those_that_have_trained_together_and_fail_now_end_the_job_as_before():
    story = Story(2, HERE).started()
    story.ready("w0"), story.ready("w1")  # a connection broke
    for _ in range(FORM_ATTEMPTS):
        assert story.status is Status.FORMING
        story.ready("w0"), story.ready("w1")
        story.wait(max(0.0, story.state.retry_at - story.now))
    assert "could not connect to each other in 3 attempts" in story.to_the_end().reason


def test_before_the_first_round_nobody_is_a_newcomer():
    story = Story(2, HERE)
    story.ready("w0", "w1")
    unreachable(story, "w1")
    assert "could not connect to each other in 3 attempts" in story.to_the_end().reason


def test_a_newcomer_that_has_got_further_than_the_others_is_needed():
    """It has the state of a step that they have not said to have: nothing may be lost with it."""
    story = grown(Story(2, HERE, follow=True).started().steps(2))
    for _ in range(FORM_ATTEMPTS):
        story(WorkerFormed("w2", story.state.round.number, 9))
        story(WorkerReady("w0", 3, story.state.round.number))
        story.ready("w1"), story(WorkerReady("w2", 9, story.state.round.number))
        story.wait(max(0.0, story.state.retry_at - story.now))
    assert story.state.phase is not Phase.OPEN and not story.of(ReportLeftOut)
