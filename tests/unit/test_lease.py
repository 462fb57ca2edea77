"""Whoever may still take steps in a round that was given up has stopped before the next round is formed."""

from __future__ import annotations

import random
import threading

import pytest

from hvtrain.control import events as e
from hvtrain.control.assembling import form_at
from hvtrain.control.lease import SHARE, Lease, clock
from hvtrain.control.roster import Stage, Status
from tests.support.membership_story import Story

T = 5.0  # the heartbeat of the stories


class Clock:
    def __init__(self, now=0.0, rate=1.0):
        self.now, self.rate = now, rate

    def __call__(self):
        return 1000.0 + self.rate * self.now  # no two machines agree on what time it is


# The worker's side -----------------------------------------------------------------------------------------
def test_nothing_is_allowed_before_the_first_answer():
    lease = Lease(T, Clock())
    assert not lease.valid and lease.left == 0


def test_it_counts_from_when_the_beat_was_sent_not_from_the_answer():
    at = Clock()
    lease = Lease(T, at)
    stamp = lease.stamp()
    at.now = 3.0
    assert lease.renew(stamp) and lease.valid and lease.left == pytest.approx(SHARE * T - 3.0)
    at.now = SHARE * T + 0.01
    assert not lease.valid


def test_answers_to_old_beats_do_not_shorten_it():
    at = Clock()
    lease = Lease(T, at)
    early = lease.stamp()
    at.now = 2.0
    lease.renew(lease.stamp())
    assert not lease.renew(early) and lease.left == pytest.approx(SHARE * T)


def test_an_answer_that_comes_too_late_gives_nothing():
    at = Clock()
    lease = Lease(T, at)
    stamp = lease.stamp()
    at.now = 20.0
    assert not lease.renew(stamp) and not lease.valid


def test_a_stamp_from_the_future_is_cut_down():
    lease = Lease(T, Clock())
    lease.renew(lease.stamp() + 1e6)
    assert lease.left == pytest.approx(SHARE * T)


def test_the_clock_only_grows():
    assert clock() <= clock()


# The coordinator's side --------------------------------------------------------------------------------------
def two_hosts(**limits):
    """Two workers on host a; b has two free slots. ``limits`` as for Story."""
    return Story(2, {"a": ("a", 2), "b": ("b", 2)}, **limits).started().steps(7)


def beat(story, name, stamp=9.0):
    return story(e.WorkerBeat(name, story.step, 99, stamp=stamp))


def test_a_beat_is_answered_once_it_counts():
    story = two_hosts()
    story.now = 3.0
    assert beat(story, "w0") == (e.RenewLease("w0", 9.0),)
    assert story.state.workers["w0"].last_beat == 3.0


def test_who_asks_for_no_answer_gets_none():
    assert beat(two_hosts(), "w0", stamp=0.0) == ()


def test_nobody_who_counts_as_lost_is_answered():
    story = two_hosts()
    story.dies("w1")
    story.state = story.state.worker("w0", stage=Stage.DOOMED)
    assert beat(story, "w0") == () and beat(story, "w1") == ()


def test_the_next_round_waits_for_the_leases_of_a_host_that_is_out_of_sight():
    story = two_hosts()
    story.now = 10.0
    beat(story, "w0")
    story.now = 11.0
    beat(story, "w1")
    story(e.AgentLost("a"), at=12.0)
    story.ready("w2", "w3")
    assert story.status is Status.BROKEN and form_at(story.state) == pytest.approx(11.0 + T)
    story.wait(11.0 + T - story.now - 0.01)
    assert story.status is Status.BROKEN
    story.wait(0.02)
    assert story.status is Status.FORMING and story.members == ("w2", "w3")


def test_it_does_not_wait_where_the_agent_was_seen_to_end():
    story = two_hosts()
    beat(story, "w0")
    story(e.AgentLost("a", ended=True))
    story.ready("w2", "w3")
    assert story.status is Status.FORMING


def test_the_connection_may_be_lost_before_the_process_is_seen_to_have_ended():
    story = two_hosts()
    beat(story, "w0")
    story(e.AgentLost("a"))
    story.ready("w2", "w3")
    assert story.status is Status.BROKEN
    story(e.AgentLost("a", ended=True))
    assert story.status is Status.FORMING


def test_it_does_not_wait_where_one_member_was_reaped_or_came_back():
    reaped = two_hosts()
    reaped.dies("w0")
    reaped(e.AgentLost("a"))
    reaped.ready(*reaped.names(Stage.STARTING))
    assert reaped.status is Status.FORMING
    back = Story(2, {"a": ("a", 1), "b": ("b", 1), "c": ("c", 1)}).started().steps(7)
    beat(back, "w0")
    back(e.AgentLost("a"))
    back.ready("w1", "w2")
    assert back.status is Status.FORMING and back.members == ("w2", "w1")


def test_a_seat_that_may_be_lost_is_no_evidence():
    """Its worker repeats that it is ready for this round: it may have taken the seat, and stepped, all the same."""
    story = two_hosts()
    story.dies("w1")
    story.back()
    beat(story, "w0"), beat(story, "w2")
    story(e.WorkerReady("w0", 7, 1))
    assert not story.state.round.left
    story(e.AgentLost("a"))
    story.ready(*story.names(Stage.STARTING))
    assert story.status is Status.BROKEN and story.due > story.now


@pytest.mark.parametrize("seed", range(200))
def test_no_old_lease_is_left_when_a_round_is_formed(seed):
    """Cut off at a random moment, with answers that come late or never, clocks that run up to 5 % wrong."""
    chance = random.Random(seed)
    story = two_hosts()
    clocks = {name: Clock(rate=chance.uniform(0.95, 1.05)) for name in ("w0", "w1")}
    leases = {name: Lease(T, at) for name, at in clocks.items()}
    cut = chance.uniform(1.0, 10.0)
    happenings = []
    for name in leases:
        at = chance.uniform(0.0, 1.0)
        while at < cut:
            sent, heard = at, at + chance.choice([0.01, 0.5, 2.0])
            happenings.append((heard, "beat", name, 1000.0 + clocks[name].rate * sent))
            at += 1.0
    happenings.append((cut + chance.choice([0.0, 1.0, 2 * T]), "lost", "a", 0.0))
    for at, what, name, stamp in sorted(happenings):
        story.wait(at - story.now, silent=("w0", "w1", "a"))
        if what == "lost":
            story(e.AgentLost("a"))
        elif name in story.state.workers:
            for action in story(e.WorkerBeat(name, story.step, 0, stamp=stamp)):
                if isinstance(action, e.RenewLease) and chance.random() < 0.8:  # others are lost on the way
                    clocks[name].now = story.now
                    leases[name].renew(action.stamp)
    while story.state.round.number < 2:
        story.ready(*story.names(Stage.STARTING))
        story.wait(0.05)
    for name, lease in leases.items():
        clocks[name].now = story.now
        assert not lease.valid, f"{name} may go on for {lease.left:.2f} s"


# Waiting -----------------------------------------------------------------------------------------------------
def in_thread(wait):
    found = []
    thread = threading.Thread(target=lambda: found.append(wait()))
    thread.start()
    return thread, found


def test_who_waits_goes_on_with_the_next_answer():
    lease = Lease(T)
    thread, found = in_thread(lambda: lease.wait(lambda: False))
    assert lease.renew(lease.stamp())
    thread.join(5)
    assert found == [True]


def test_who_waits_in_vain_is_told():
    lease, over = Lease(T), []
    thread, found = in_thread(lambda: lease.wait(lambda: bool(over)))
    over.append(1)
    lease.wake()
    thread.join(5)
    assert found == [False]
