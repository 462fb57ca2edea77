"""A part of the job that was given up writes no checkpoints over those of the others."""

from __future__ import annotations

import fcntl
import os
import threading

import numpy as np
import pytest

from hvtrain.checkpoint import BackgroundWriter, Blob, Snapshot, Store, fence, write
from hvtrain.checkpoint.fence import Fence, Mark, new_job
from hvtrain.errors import CheckpointWriteFailed, GivenUp, RoundBroken, WorkersLost

OURS, THEIRS = "01795300215248608065-89fbfe6d", "01795300215284249394-3c397a68"


def snapshot(step, value=0.0):
    return Snapshot(step=step, epoch=0, groups={"model": {"w": Blob.from_numpy(np.full(3, value, np.float32))}})


def may(directory, job, round):
    try:
        with Fence(directory).passage(job, round):
            return True
    except GivenUp:
        return False


def test_a_later_round_closes_the_past(tmp_path):
    Fence(tmp_path).raise_to(OURS, 5, first=True)
    assert may(tmp_path, OURS, 5)
    Fence(tmp_path).raise_to(OURS, 6, first=False)
    assert not may(tmp_path, OURS, 5) and may(tmp_path, OURS, 6)


def test_a_round_that_is_late_learns_that_it_is_over(tmp_path):
    Fence(tmp_path).raise_to(OURS, 6, first=True)
    with pytest.raises(RoundBroken, match="round 6 already"):
        Fence(tmp_path).raise_to(OURS, 5, first=False)


def test_another_start_takes_the_fence_for_good(tmp_path):
    """It counts its rounds from 1 again, and may have been given the same token. The former one must not end as if all
    were well without a checkpoint."""
    assert OURS < THEIRS
    Fence(tmp_path).raise_to(OURS, 40, first=True)
    Fence(tmp_path).raise_to(THEIRS, 1, first=True)
    assert may(tmp_path, THEIRS, 1)
    with pytest.raises(CheckpointWriteFailed, match="another start of this run"):
        may(tmp_path, OURS, 40)
    with pytest.raises(WorkersLost, match="another start of this run"):
        Fence(tmp_path).raise_to(OURS, 41, first=False)
    assert may(tmp_path, THEIRS, 1)


def test_what_a_former_start_has_left_is_in_nobodys_way(tmp_path):
    """On disks that are not shared, rank 0 may come to a host in a later round that a former start has used."""
    Fence(tmp_path).raise_to(OURS, 40, first=True)
    assert may(tmp_path, THEIRS, 2), "the only survivor saves here"
    Fence(tmp_path).raise_to(THEIRS, 2, first=False)
    assert may(tmp_path, THEIRS, 2)


def test_where_there_is_no_fence_everybody_passes(tmp_path):
    assert may(tmp_path, OURS, 3)


@pytest.mark.parametrize("text", [b"", b"nonsense", b"\xff" * 40, OURS.encode()])
def test_a_file_that_is_no_fence_holds_nobody_up(tmp_path, text):
    (tmp_path / fence.NAME).write_bytes(text)
    assert may(tmp_path, OURS, 3)
    Fence(tmp_path).raise_to(OURS, 4, first=False)
    assert not may(tmp_path, OURS, 3)


def test_a_job_that_begins_later_has_a_greater_name():
    names = [new_job() for _ in range(3)]
    assert names == sorted(names) and {len(name) for name in names} == {fence.JOB_LENGTH}


def test_marks_are_of_one_length():
    marks = [Mark(OURS, 1), Mark(THEIRS, 10**11)]
    assert len({len(mark.to_bytes()) for mark in marks}) == 1
    assert [Mark.from_bytes(mark.to_bytes()) for mark in marks] == marks


def test_it_is_not_raised_while_somebody_names_a_checkpoint(tmp_path):
    """Who has looked may finish; afterwards nobody of the old round names anything."""
    old, raised = Fence(tmp_path), threading.Event()
    old.raise_to(OURS, 5, first=True)
    thread = threading.Thread(target=lambda: (Fence(tmp_path).raise_to(OURS, 6, first=False), raised.set()))
    with old.passage(OURS, 5):
        thread.start()
        assert not raised.wait(0.1)
    assert raised.wait(5)
    thread.join()
    assert not may(tmp_path, OURS, 5)


def test_whoever_stands_still_with_the_lock_is_not_waited_for_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(fence, "LOCK_SECONDS", 0.05)
    Fence(tmp_path).raise_to(OURS, 5, first=True)
    with open(tmp_path / fence.NAME) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        Fence(tmp_path).raise_to(OURS, 6, first=False)
    assert not may(tmp_path, OURS, 5)


def test_no_checkpoint_of_a_closed_round_comes_to_exist(tmp_path):
    store, old = Store(tmp_path), Fence(tmp_path)
    old.raise_to(OURS, 5, first=True)
    assert write(store, snapshot(10), lambda: old.passage(OURS, 5)).path.name == "step-00000010"
    Fence(tmp_path).raise_to(OURS, 6, first=False)
    for step in (10, 11):  # the same step with other content, and a new one
        with pytest.raises(GivenUp):
            write(store, snapshot(step, 1.0), lambda: old.passage(OURS, 5))
    assert store.steps() == [10]
    assert not store.read(store.path(10)).groups["model"]["w"].to_numpy().any(), "the older one is intact"
    assert sorted(os.listdir(tmp_path)) == [".fence", "step-00000010"], "nothing half-written is left"


def test_the_background_writer_leaves_it_out_and_goes_on(tmp_path, caplog):
    store, old, seen = Store(tmp_path), Fence(tmp_path), []
    old.raise_to(OURS, 6, first=True)
    with BackgroundWriter(store, None, seen.append, lambda: old.passage(OURS, 5)) as writer:
        writer.submit(snapshot(10))
    assert writer.given_up == 10 and not seen and not store.steps() and "gone on without it" in caplog.text
