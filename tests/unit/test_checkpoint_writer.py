"""The order of a write, failures of the disk, and the background writer."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import threading
import time

import numpy as np
import pytest

from hvtrain.checkpoint import BackgroundWriter, Blob, Retention, Snapshot, Store, background, verify, write
from hvtrain.checkpoint import disk
from hvtrain.errors import CheckpointWriteFailed, ExitCode, UsageError


def snapshot(step, size=1000, value=1):
    tensor = Blob.from_numpy(np.full(size, value, np.uint8))
    return Snapshot(step=step, epoch=0, groups={"model": {"w": tensor}, "optimizer": {"m": tensor}})


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "checkpoints")


def test_everything_is_durable_before_it_is_named(store, monkeypatch):
    write(store, snapshot(1))
    events = []
    names: dict[int, str] = {}
    real_open, real_sync, real_rename = os.open, os.fsync, os.rename

    def spy_open(path, flags, *rest, **more):
        descriptor = real_open(path, flags, *rest, **more)
        names[descriptor] = os.path.basename(os.fspath(path))
        if flags & os.O_CREAT:
            events.append(("create", names[descriptor]))
        return descriptor

    monkeypatch.setattr(os, "open", spy_open)
    monkeypatch.setattr(os, "fsync", lambda fd: (real_sync(fd), events.append(("sync", names[fd])))[0])
    monkeypatch.setattr(os, "rename", lambda a, b, **more: (
        real_rename(a, b, **more), events.append(("rename", os.path.basename(b))))[0])
    write(store, snapshot(2))
    temporary = next(name for event, name in events if name.startswith(".tmp-"))
    assert events == [
        ("create", "model.safetensors"), ("sync", "model.safetensors"),
        ("create", "optimizer.safetensors"), ("sync", "optimizer.safetensors"),
        ("create", "state.json"), ("sync", "state.json"),
        ("create", "manifest.json"), ("sync", "manifest.json"),
        ("sync", temporary), ("rename", "step-00000002"), ("sync", "checkpoints"),
    ]


@pytest.mark.parametrize("call", ["write", "fsync", "rename", "mkdir"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
def test_a_failing_disk_leaves_the_older_ones_and_no_left_overs(store, monkeypatch, call, code):
    write(store, snapshot(1))
    write(store, snapshot(2))
    real = getattr(os, call)
    remaining = [3 if call in ("write", "fsync") else 0]

    def fail(*arguments, **more):
        if remaining[0] == 0:
            raise OSError(code, os.strerror(code))
        remaining[0] -= 1
        return real(*arguments, **more)

    for step in (2, 3):  # over an existing one, and a new one
        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            patch.setattr("hvtrain.checkpoint.writer.exchange", lambda one, other: False)
            with pytest.raises(CheckpointWriteFailed) as caught:
                write(store, snapshot(step, value=2))
        assert caught.value.errno == code and caught.value.exit_code == ExitCode.ENVIRONMENT == 3
        assert str(store.directory) in str(caught.value) and "are free" in str(caught.value)
        assert "2.0 KB are needed" in str(caught.value) and "intact" in str(caught.value)
        assert sorted(os.listdir(store.directory)) == ["step-00000001", "step-00000002"]
        assert store.read(store.path(2)).groups == snapshot(2).groups and verify(store.path(1)) == []
    write(store, snapshot(3))


def test_an_interrupt_leaves_no_left_overs(store, monkeypatch):
    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    store.directory.mkdir()
    with pytest.raises(KeyboardInterrupt):
        write(store, snapshot(1))
    assert os.listdir(store.directory) == []


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(place)], capture_output=True)
    if done.returncode:
        pytest.skip(f"cannot mount a small disk: {done.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_really_full_disk(small_disk):
    store = Store(small_disk / "checkpoints")
    write(store, snapshot(1, 300_000))
    with pytest.raises(CheckpointWriteFailed, match=r"full \(600\.0 KB are needed, 4\d\d\.\d KB are free\)"):
        write(store, snapshot(2, 300_000))
    assert os.listdir(store.directory) == ["step-00000001"] and verify(store.path(1)) == []
    write(store, snapshot(2, 10_000))


def test_a_really_read_only_disk(small_disk):
    store = Store(small_disk / "checkpoints")
    write(store, snapshot(1))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for target in (store, Store(small_disk / "new" / "place")):
        with pytest.raises(CheckpointWriteFailed, match="read-only"):
            write(target, snapshot(2))
    assert store.newest_sound() == store.path(1)


def test_a_file_size_limit(store):
    write(store, snapshot(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(CheckpointWriteFailed, match="ulimit"):
            write(store, snapshot(2, 300_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert os.listdir(store.directory) == ["step-00000001"]


def test_a_file_where_the_directory_should_be(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(CheckpointWriteFailed):
        write(Store(tmp_path / "checkpoints"), snapshot(1))


def test_memory_stays_flat_while_writing(store):
    """Twice 64 MB of tensors are written with a few MB of new memory: nothing is serialised in memory."""
    import tracemalloc

    big = snapshot(1, 64 << 20)
    tracemalloc.start()
    write(store, big)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.reset_peak()
    verify(store.path(1))
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("swap", [True, False])
def test_two_writers_of_the_same_step(store, monkeypatch, swap):
    if not swap:
        monkeypatch.setattr("hvtrain.checkpoint.writer.exchange", lambda one, other: False)
    errors = []

    def work(value):
        try:
            for _ in range(5):
                write(store, snapshot(7, value=value))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(value,)) for value in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert errors == [] and verify(store.path(7)) == [] and store.steps() == [7]
    write(store, snapshot(7, value=3))
    assert len(os.listdir(store.directory)) == 1


def test_make_directories_twice(tmp_path):
    disk.make_directories(tmp_path / "a" / "b")
    disk.make_directories(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def test_background_writer_prunes_and_reports(store):
    seen = []
    with BackgroundWriter(store, Retention(keep=2), seen.append) as background_writer:
        for step in range(1, 6):
            background_writer.submit(snapshot(step))
    assert [written.manifest.step for written in seen] == [1, 2, 3, 4, 5]
    assert store.steps() == [4, 5] and not background_writer.busy
    with pytest.raises(UsageError, match="closed"):
        background_writer.submit(snapshot(6))
    background_writer.close()


def test_background_writer_never_writes_two_at_once_and_does_not_block(store, monkeypatch):
    gate, active = threading.Event(), [0]

    def slow(target, what, passage):
        active[0] += 1
        assert active[0] == 1
        gate.wait(10)
        active[0] -= 1
        return write(target, what)

    monkeypatch.setattr(background, "write", slow)
    background_writer = BackgroundWriter(store)
    begin = time.monotonic()
    background_writer.submit(snapshot(1))
    assert time.monotonic() - begin < 1 and background_writer.busy
    with pytest.raises(CheckpointWriteFailed, match="step 1 is still being written"):
        background_writer.submit(snapshot(2), timeout=0.05)
    gate.set()
    background_writer.submit(snapshot(3))
    background_writer.close()
    assert store.steps() == [1, 3]


def test_background_errors_surface_once_at_the_next_call(store, monkeypatch):
    background_writer = BackgroundWriter(store)

    def broken(target, what, passage):
        raise CheckpointWriteFailed("no room")

    monkeypatch.setattr(background, "write", broken)
    background_writer.submit(snapshot(1))
    with pytest.raises(CheckpointWriteFailed, match="no room"):
        background_writer.submit(snapshot(2))
    background_writer.wait()
    background_writer.submit(snapshot(3))
    with pytest.raises(CheckpointWriteFailed, match="no room"):
        background_writer.close()
    background_writer.close()
    with pytest.raises(ValueError, match="mine"):  # the error under way is the one that counts
        with BackgroundWriter(store) as other:
            other.submit(snapshot(4))
            raise ValueError("mine")
