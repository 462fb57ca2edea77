"""The history of a job: what is told of losses, rounds, rollbacks and resizes, by a clock made by hand."""

from __future__ import annotations

import pytest

from hvtrain.control import causes, events, messages as m
from hvtrain.control.roster import Phase
from tests.support.story import Story


# A job without a fault -----------------------------------------------------------------------------------
def test_a_quiet_job():
    story = Story()
    story.now += 2.0
    story.begin("w0", "w1")
    story.train(99)
    account = story.end()
    expected = {"steps": 100, "seconds": 9.9, "goodput": 1.0, "lost_workers": 0, "repeated_steps": 0,
                "seconds_down": 0.0}
    assert {key: account[key] for key in expected} == expected
    (only,) = story.told("round")
    assert (only["reason"], only["step"], only["size"], only["seconds"]["full"]) == ("start", 0, 2, 2.0)
    assert not story.told("resize") and not story.told("rollback") and story.watcher.strengths == [(1, 2)]


def test_a_start_from_a_checkpoint_is_no_rollback_and_counts_its_own_steps():
    story = Story()
    story.begin("w0", step=5000)
    story.train(9)
    account = story.end()
    assert account["steps"] == 10 and not story.told("rollback") and story.told("round")[0]["step"] == 5000


def test_a_job_that_never_trained():
    story = Story()
    story.now += 3.0
    account = story.end()
    assert (account["goodput"], account["steps"], story.told("round")) == (None, 0, [])


def test_a_run_that_was_complete_already():
    story = Story()
    story.seats("w0")
    story.formed(80, source="checkpoint", known=80)
    account = story.end()
    assert (account["goodput"], account["steps"]) == (None, 0)


# Losses --------------------------------------------------------------------------------------------------
def test_the_parts_of_a_recovery_are_timed():
    story = Story()
    story.begin("w0", "w1")
    story.train(49)
    story.lose("w1")
    for seconds, tell in [(0.1, lambda: story.chronicle.ready("w0", m.Ready(step=50, round=1))),
                          (0.2, lambda: story.chronicle.ready("w2", m.Ready())),
                          (0.0, lambda: story.seats("w0", "w2")),
                          (0.1, lambda: story.formed(50, seconds={"agree": 0.01, "state": 0.02}, received_bytes=100)),
                          (0.1, lambda: story.first_step("w0")),
                          (0.1, lambda: story.chronicle.stepped("w2", m.Stepped(round=2, step=51)))]:
        story.now += seconds
        tell()
    story.train(49)
    _, change = story.told("round")
    assert change["seconds"] == {"returned": 0.1, "replaced": 0.3, "seated": 0.3, "formed": 0.4, "first_step": 0.5,
                                 "full": 0.6, "in_agree": 0.01, "in_state": 0.02}
    assert (change["step"], change["size"], change["reason"], change["received_bytes"]) == (50, 2, "loss", 200)
    account = story.end()
    assert account["seconds_down"] == 0.5 and account["steps"] == 100
    assert account["goodput"] == pytest.approx(1 - 0.5 / account["seconds"], abs=1e-4)
    assert story.watcher.strengths == [(1, 2), (1, 1), (2, 2)]


def test_a_loss_is_told_with_its_cause_and_the_step_of_the_job():
    story = Story()
    story.begin("w0", "w1")
    story.train(9)
    story.lose("w1", cause=causes.lost_worker(1, "vm", 0, 9, step=4))  # what it had last said of itself
    (lost,) = story.told("worker_lost")
    assert (lost["step"], lost["rank"], lost["host"], lost["cause"]) == (10, 1, "vm", "killed") and lost["job_goes_on"]
    assert not story.told("stall") and story.end()["losses"][0]["worker"] == "w1"


def test_the_loss_that_ends_a_job_does_not_say_that_it_goes_on():
    story = Story()
    story.begin("w0", "w1")
    story.lose("w1", phase=Phase.ENDING)
    assert not story.told("worker_lost")[0]["job_goes_on"]


@pytest.mark.parametrize("cause", [causes.silent(1, 5.0, 10), causes.stuck(1, 20.0, 10)], ids=["silent", "stuck"])
def test_a_silent_fault_is_a_stall_too(cause):
    story = Story()
    story.begin("w0", "w1")
    story.lose("w1", cause=cause)
    (stall,) = story.told("stall")
    assert (stall["rank"], stall["reason"]) == (1, cause.reason) and len(story.told("worker_lost")) == 1


def test_what_was_not_noticed_at_once_is_down_as_well():
    story = Story()
    story.begin("w0", "w1")
    story.train(70)
    silent = story.now
    story.now += 5.0
    cause = causes.silent(1, 5.0, 71)
    state = story.state(lost=("w1",)).worker("w1", last_beat=silent)
    story.chronicle.action(events.ReportLoss("w1", 1, "host", cause), state)
    story.chronicle.action(events.CutRound(1, ("w0",), cause.reason), state)
    story.now += 0.5
    story.seats("w0", "w2")
    story.formed(71)
    story.first_step()
    change = story.told("round")[1]
    assert (change["seconds"]["unnoticed"], change["seconds"]["first_step"]) == (5.0, 0.5)
    assert story.end()["seconds_down"] == 5.5
    story = Story()
    story.begin("w0", "w1")
    story.lose("w1", seconds=1.0, cause=causes.silent(1, 5.0, 1))  # it gave no sign since before it trained
    story.seats("w0")
    assert "unnoticed" not in story.end()["rounds"][-1]["seconds"]


def test_a_stall_that_is_nobodys_fault():
    story = Story()
    story.begin("w0", "w1")
    cause = causes.no_progress(40.0, 1)
    story.act(events.CutRound(1, ("w0", "w1"), cause.reason), failure=cause)
    (stall,) = story.told("stall")
    assert stall["rank"] is None and not story.told("worker_lost")


def test_a_lost_agent_is_no_stall():
    """Like one, it has no rank; 40 seconds were once counted as down before it was lost."""
    story = Story()
    story.begin("w0", "w1")
    story.now += 100.0
    cause = causes.lost_agent("agent@host", "host")
    story.act(events.CutRound(1, ("w0",), cause.reason), failure=cause)
    story.now += 0.5
    story.seats("w0")
    story.formed(71)
    story.first_step()
    assert story.end()["seconds_down"] == 0.5 and not story.told("stall")


def test_the_first_step_may_be_heard_of_before_the_machine_knows_that_the_round_is_active():
    """Workers' words are read at once, what the machine makes of them comes through a queue."""
    story = Story()
    story.begin("w0", "w1")
    story.train(49)
    story.lose("w1")
    story.seats("w0")
    story.formed(50, active=False)
    story.first_step()
    story.active(50)
    (_, change), (resize,) = story.told("round"), story.told("resize")
    assert (change["step"], change["seconds"]["formed"]) == (50, 0.0)
    assert (resize["old"], resize["new"], resize["step"]) == (2, 1, 50)
    assert story.watcher.strengths == [(1, 2), (1, 1), (2, 1)]


def test_a_round_that_breaks_again_before_it_trains_is_one_outage():
    story = Story()
    story.begin("w0", "w1", "w2")
    story.train(9)
    story.lose("w2")
    story.now += 0.5
    story.seats("w0", "w1")
    story.formed(10)
    story.lose("w1", seconds=0.5)
    story.now += 0.5
    story.seats("w0")
    story.formed(10)
    story.first_step()
    _, change = story.told("round")
    assert change["seconds"]["first_step"] == 1.5 and change["round"] == 3
    assert story.end()["seconds_down"] == 1.5
    assert [(e["old"], e["new"]) for e in story.told("resize")] == [(3, 2), (2, 1)]


def test_a_round_that_breaks_before_it_is_complete_is_told_as_far_as_it_came():
    story = Story()
    story.begin("w0", "w1")
    story.lose("w1")
    story.seats("w0", "w2")
    story.formed(1)
    story.now += 0.2
    story.first_step("w0")
    story.lose("w2", seconds=1.0)
    story.seats("w0")
    story.formed(2)
    story.now += 0.3
    story.first_step()
    _, second, third = story.told("round")
    assert "full" not in second["seconds"] and second["seconds"]["first_step"] == 0.2
    assert third["seconds"]["full"] == 0.3
    assert story.end()["seconds_down"] == 0.5


def test_a_first_round_that_breaks_is_part_of_the_start():
    story = Story()
    story.seats("w0", "w1")
    story.lose("w1", seconds=1.0)
    story.seats("w0", "w2")
    story.formed(0)
    story.first_step()
    story.train(9)
    account = story.end()
    assert [e["reason"] for e in story.told("round")] == ["start"]
    assert (account["goodput"], account["seconds_down"], account["lost_workers"]) == (1.0, 0.0, 1)


def test_a_job_that_ends_while_it_recovers():
    story = Story()
    story.begin("w0", "w1")
    story.train(59)
    story.lose("w1")
    story.seats("w0")
    story.now += 4.0
    account = story.end()
    assert (account["seconds_down"], account["seconds"]) == (4.0, 9.9)
    assert account["goodput"] == pytest.approx(1 - 4.0 / 9.9, abs=1e-4)
    assert account["rounds"][-1]["seconds"] == {"seated": 0.0} and len(account["rounds"]) == 2


def test_a_loss_after_the_last_step_costs_until_the_others_are_connected_again():
    story = Story()
    story.begin("w0", "w1")
    story.train(59)
    story.lose("w1")
    story.now += 0.5
    story.seats("w0")
    story.formed(60)
    story.now += 3.0  # the last evaluation
    account = story.end()
    assert (account["seconds_down"], account["steps"]) == (0.5, 60)


# Rollbacks -----------------------------------------------------------------------------------------------
def test_a_rollback_is_told_once_and_its_steps_are_counted():
    story = Story()
    story.begin("w0", "w1")
    story.train(99)
    story.lose("w0")
    story.seats("w2", "w3")
    story.now += 1.0
    story.formed(80, source="memory", known=100)
    story.first_step()
    story.train(119)
    (rollback,) = story.told("rollback")
    assert (rollback["step"], rollback["source"], rollback["steps"]) == (80, "memory", 20)
    account = story.end()
    assert (account["steps"], account["repeated_steps"]) == (200, 20)
    per_step = (account["seconds"] - 1.0) / 218
    assert account["goodput"] == pytest.approx(1 - (1.0 + 19 * per_step) / account["seconds"], abs=1e-4)


def test_steps_that_only_the_coordinator_remembers_are_lost_too():
    """Agents and their memory are gone with the workers: nobody else knows how far the job was."""
    story = Story()
    story.begin("w0")
    story.train(99)
    story.lose("w0")
    story.seats("w1")
    story.formed(60, source="checkpoint", known=60)
    (rollback,) = story.told("rollback")
    assert (rollback["source"], rollback["steps"]) == ("checkpoint", 40)


def test_a_rollback_that_has_to_be_done_again_is_not_counted_twice():
    story = Story()
    story.begin("w0")
    story.train(99)
    story.lose("w0")
    story.seats("w1")
    story.formed(80, source="memory", known=100)
    story.lose("w1")
    story.seats("w2")
    story.formed(60, source="checkpoint", known=100)
    story.first_step()
    assert [(e["step"], e["steps"]) for e in story.told("rollback")] == [(80, 20), (60, 20)]
    assert story.end()["repeated_steps"] == 40


def test_the_state_of_members_is_no_rollback():
    story = Story()
    story.begin("w0", "w1")
    story.train(9)
    story.lose("w0")
    story.seats("w1")
    story.formed(10, source="members", known=10)
    assert not story.told("rollback")


# Resizes -------------------------------------------------------------------------------------------------
def test_growth_costs_from_when_the_members_have_stopped():
    story = Story()
    story.begin("w0")
    story.train(9)
    story.pause("grow")
    story.now += 2.0  # a long step is finished first
    story.chronicle.ready("w0", m.Ready(step=10, round=1))
    story.now += 0.25
    story.seats("w0", "w1")
    story.formed(10)
    story.first_step()
    (resize,) = story.told("resize")
    assert (resize["old"], resize["new"], resize["step"]) == (1, 2, 10)
    assert story.told("round")[1]["reason"] == "grow" and story.end()["seconds_down"] == 0.25


def test_a_change_that_is_asked_for_before_the_last_one_has_trained_is_told_on_its_own():
    """A job scaled up and, within a fraction of a second, down again: the second change was never told of."""
    story = Story()
    story.begin("w0", "w1")
    story.pause("grow")
    story.seats("w0", "w1", "w2", "w3")
    story.formed(1)
    story.now += 0.1
    story.pause("shrink")
    story.first_step()
    story.now += 0.1
    story.seats("w0")
    story.formed(2)
    story.first_step()
    assert [(e["round"], e["reason"]) for e in story.told("round")] == [(1, "start"), (2, "grow"), (3, "shrink")]
    assert story.told("round")[1]["seconds"]["seated"] == 0.0
    assert [(e["old"], e["new"]) for e in story.told("resize")] == [(2, 4), (4, 1)]


def test_a_loss_while_the_members_pause_is_timed_as_a_loss():
    story = Story()
    story.begin("w0", "w1")
    story.pause("grow")
    story.lose("w1", seconds=2.0)
    story.now += 0.5
    story.seats("w0", "w2")
    story.formed(1)
    story.first_step()
    change = story.told("round")[1]
    assert (change["reason"], change["seconds"]["first_step"]) == ("loss", 0.5) and story.end()["seconds_down"] == 0.5


# What workers may say ------------------------------------------------------------------------------------
def test_what_a_worker_says_of_an_event_cannot_take_the_place_of_its_name_and_step():
    story = Story()
    values = {"path": "p", "event": "x", "time": 1}
    story.chronicle.report(m.Report(kind="event", name="checkpoint", step=3, values=values))
    assert story.told("checkpoint") == [{"step": 3, "path": "p"}]


def test_who_is_no_member_of_the_round_does_not_count():
    story = Story()
    story.begin("w0", "w1")
    story.lose("w1")
    story.seats("w0")
    story.chronicle.formed("w9", m.Formed(round=2, step=500))
    story.chronicle.stepped("w9", m.Stepped(round=2, step=500))
    story.formed(1)
    story.first_step()
    assert story.told("round")[1]["step"] == 1


def test_a_thousand_losses_are_kept_and_more_are_counted():
    story = Story()
    story.begin("w0", "w1")
    for _ in range(1500):
        story.lose("w1")
        story.seats("w0", "w1")
        story.formed(story.progress)
        story.first_step()
    account = story.end()
    assert account["lost_workers"] == 1500 and len(account["losses"]) == len(account["rounds"]) == 1000
