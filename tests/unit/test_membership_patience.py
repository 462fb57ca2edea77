"""How long the others wait for a replacement: as told, or as long as workers take to start in this job."""

from __future__ import annotations

import pytest

from hvtrain.control.events import WorkerEnded, WorkerLeaving
from hvtrain.control.roster import REPLACE_CEILING, REPLACE_FACTOR, REPLACE_FLOOR, Status
from tests.support.membership_story import ECHO_CAUSE, Story, kinds


def begun(seconds: float, replace: float | None = None, **limits) -> Story:
    """Three workers that were ready ``seconds`` after they had been started, and train."""
    story = Story(3, replace=replace, **limits)
    story.wait(seconds)
    return story.started()


@pytest.mark.parametrize("start,wait", [
    (0.3, REPLACE_FLOOR), (6.0, 6.0 * REPLACE_FACTOR), (25.0, REPLACE_CEILING), (31.0, REPLACE_FLOOR)])
def test_auto_follows_what_starting_a_worker_takes(start, wait):
    """Where nobody would wait so long as it takes, the others go on soon."""
    assert begun(start).state.replace_limit == wait


def test_what_is_told_counts():
    assert begun(6.0, replace=0.5).state.replace_limit == 0.5
    assert begun(6.0, replace=0.0).state.replace_limit == 0.0


def test_the_others_wait_as_long_as_that_and_no_longer():
    story = begun(6.0)
    story.dies("w1")
    story.ready("w0", "w2")
    story.wait(8.9)
    assert story.status is Status.BROKEN
    assert kinds(story.wait(0.2)) == ["FormRound"] and story.members == ("w0", "w2")


def test_a_replacement_that_comes_in_time_ends_the_wait():
    story = begun(6.0)
    story.dies("w1")
    story.ready("w0", "w2")
    story.wait(5.0)
    assert kinds(story.ready("w3")) == ["FormRound"] and story.members == ("w0", "w3", "w2")


def test_replacements_that_start_faster_than_the_first_workers_shorten_the_wait():
    """They are forked from a process that has imported the framework; the first ones had to wait for that."""
    story, limits = begun(8.0), []
    for lost in range(4):
        story.dies(story.members[0])
        story.wait(1.5)
        story.back()
        limits.append(story.state.replace_limit)
    assert limits == [8.0 * REPLACE_FACTOR / 2, 8.0 * REPLACE_FACTOR / 4, 1.5 * REPLACE_FACTOR, 1.5 * REPLACE_FACTOR]


def test_a_worker_that_leaves_waits_as_long_for_the_one_that_takes_its_place():
    story = begun(4.0)
    story(WorkerLeaving("w1"))
    assert kinds(story.wait(5.9)) == []
    assert kinds(story.wait(0.2)) == ["PauseRound"]


def test_the_end_of_a_job_does_not_wait_so_long_for_a_better_cause():
    story = begun(20.0, elastic=False)
    story(WorkerEnded("w0", ECHO_CAUSE))
    assert kinds(story.wait(1.9)) == []
    assert "Dismiss" in kinds(story.wait(0.2))
