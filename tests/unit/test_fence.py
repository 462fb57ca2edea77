"""A part of the job that was given up writes no checkpoints over those of the others."""

from __future__ import annotations

import fcntl
import os
import threading

import numpy as np
import pytest

from hvtrain.checkpoint import BackgroundWriter, Blob, Snapshot, Store, fence, write
from hvtrain.checkpoint.fence import Fence, Mark, job_id
from hvtrain.errors import GivenUp, RoundBroken, WorkersLost

OURS, THEIRS = job_id("a token", 1), job_id("a token", 2)


def snapshot(step, value=0.0):
    return Snapshot(step=step, epoch=0, groups={"model": {"w": Blob.from_numpy(np.full(3, value, np.float32))}})


def may(fence, round):
    try:
        with fence.passage(round):
            return True
    except GivenUp:
        return False


def test_a_later_round_closes_the_past(tmp_path):
    old, new = Fence(tmp_path, OURS), Fence(tmp_path, OURS)
    old.raise_to(5, first=True)
    assert may(old, 5)
    new.raise_to(6, first=False)
    assert not may(old, 5) and may(new, 6)


def test_another_start_with_the_same_token_is_another_job(tmp_path):
    """A token that a person gives (launch.token_file) stays the same; rounds are counted from 1 again."""
    Fence(tmp_path, job_id("a token", 1)).raise_to(6, first=True)
    again = Fence(tmp_path, job_id("a token", 2))
    again.raise_to(1, first=True)
    assert may(again, 1) and not may(Fence(tmp_path, job_id("a token", 1)), 6)


def test_a_round_that_is_late_learns_that_it_is_over(tmp_path):
    Fence(tmp_path, OURS).raise_to(6, first=True)
    with pytest.raises(RoundBroken, match="round 6 already"):
        Fence(tmp_path, OURS).raise_to(5, first=False)


def test_another_start_takes_the_fence_for_good(tmp_path):
    former, later = Fence(tmp_path, OURS), Fence(tmp_path, THEIRS)
    former.raise_to(40, first=True)
    later.raise_to(1, first=True)
    assert may(later, 1) and not may(former, 40)
    with pytest.raises(WorkersLost, match="another start of this run"):
        former.raise_to(41, first=False)
    assert may(later, 1)


def test_where_there_is_no_fence_everybody_passes(tmp_path):
    assert may(Fence(tmp_path, OURS), 3)


@pytest.mark.parametrize("text", [b"", b"nonsense", b"\xff" * 40, OURS.encode()])
def test_a_file_that_is_no_fence_holds_nobody_up(tmp_path, text):
    (tmp_path / fence.NAME).write_bytes(text)
    assert may(Fence(tmp_path, OURS), 3)
    Fence(tmp_path, OURS).raise_to(4, first=False)
    assert not may(Fence(tmp_path, OURS), 3)


def test_marks_are_of_one_length():
    marks = [Mark(OURS, 1), Mark(THEIRS, 10**11)]
    assert len({len(mark.to_bytes()) for mark in marks}) == 1
    assert [Mark.from_bytes(mark.to_bytes()) for mark in marks] == marks


def test_it_is_not_raised_while_somebody_names_a_checkpoint(tmp_path):
    """Who has looked may finish; afterwards nobody of the old round names anything."""
    old, raised = Fence(tmp_path, OURS), threading.Event()
    old.raise_to(5, first=True)
    thread = threading.Thread(target=lambda: (Fence(tmp_path, OURS).raise_to(6, first=False), raised.set()))
    with old.passage(5):
        thread.start()
        assert not raised.wait(0.1)
    assert raised.wait(5)
    thread.join()
    assert not may(old, 5)


def test_whoever_stands_still_with_the_lock_is_not_waited_for_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(fence, "LOCK_SECONDS", 0.05)
    Fence(tmp_path, OURS).raise_to(5, first=True)
    with open(tmp_path / fence.NAME) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        Fence(tmp_path, OURS).raise_to(6, first=False)
    assert not may(Fence(tmp_path, OURS), 5)


def test_no_checkpoint_of_a_closed_round_comes_to_exist(tmp_path):
    store, old = Store(tmp_path), Fence(tmp_path, OURS)
    old.raise_to(5, first=True)
    assert write(store, snapshot(10), lambda: old.passage(5)).path.name == "step-00000010"
    Fence(tmp_path, OURS).raise_to(6, first=False)
    for step in (10, 11):  # the same step with other content, and a new one
        with pytest.raises(GivenUp):
            write(store, snapshot(step, 1.0), lambda: old.passage(5))
    assert store.steps() == [10]
    assert not store.read(store.path(10)).groups["model"]["w"].to_numpy().any(), "the older one is intact"
    assert sorted(os.listdir(tmp_path)) == [".fence", "step-00000010"], "nothing half-written is left"


def test_the_background_writer_leaves_it_out_and_goes_on(tmp_path, caplog):
    store, old, seen = Store(tmp_path), Fence(tmp_path, OURS), []
    old.raise_to(6, first=True)
    with BackgroundWriter(store, None, seen.append, lambda: old.passage(5)) as writer:
        writer.submit(snapshot(10))
    assert not seen and not store.steps() and "gone on without it" in caplog.text
