"""The snapshot in shared memory: there when all who wrote it are dead, whole whenever they died."""

from __future__ import annotations

import json
import os
import random
import resource
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from hvtrain.checkpoint import Blob, memory_slot
from hvtrain.checkpoint.memory import SharedSnapshots
from hvtrain.checkpoint.outline import ALIGNMENT, Outline
from hvtrain.checkpoint.room import available
from hvtrain.errors import EnvironmentNotReady, ProtocolError, UsageError, UserCodeError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def shared():
    shared = SharedSnapshots.create()
    yield shared
    shared.close()


def groups(value, size=1000):
    return {"model": {"w": Blob.from_numpy(np.full(size, value, np.float32)),
                      "steps": Blob.from_numpy(np.array(value, np.int64))},
            "optimizer": {"w/m": Blob("BF16", (3, 1), bytes([value % 256] * 6)), "none": Blob("F32", (0, 4), b"")},
            "ema": {}}


def same(found, value, size=1000):
    wanted = groups(value, size)
    assert {g: list(b) for g, b in found.items()} == {g: list(b) for g, b in wanted.items()}
    for group, blobs in wanted.items():
        for name, blob in blobs.items():
            got = found[group][name]
            assert (got.dtype, got.shape, bytes(got.data)) == (blob.dtype, blob.shape, bytes(blob.data))


def open_files():
    return sorted(os.listdir("/proc/self/fd"))


def test_empty_memory_holds_nothing(shared):
    assert shared.newest() is None and shared.read() is None and shared.committed == 0


def test_the_newest_snapshot_comes_back(shared):
    for step in (1, 2, 3):
        shared.write(step, groups(step), {"cursor": step, "tuple": (1, "é", None, 0.1)})
        found = shared.read()
        assert (shared.newest(), found.step) == (step, step)
        assert found.state == {"cursor": step, "tuple": [1, "é", None, 0.1]}
        same(found.groups, step)
        assert found.groups["model"]["w"].to_numpy().flags.writeable is False


def test_a_lower_step_written_later_is_the_newest(shared):
    shared.write(90, groups(90), {})
    shared.write(80, groups(80), {})  # the job went back to a durable checkpoint
    assert shared.newest() == 80 and shared.read().step == 80


def test_sizes_may_change_from_write_to_write(shared):
    sizes = [10, 3_000_000, 0, 500_000, 1]
    for step, size in enumerate(sizes):
        shared.write(step, groups(step, size), {"size": size})
        same(shared.read().groups, step, size)


def test_what_was_read_stays_through_the_next_write_and_after_closing():
    shared = SharedSnapshots.create()
    shared.write(1, groups(1), {})
    found = shared.read()
    shared.write(2, groups(2, 2_000_000), {})
    same(found.groups, 1)
    shared.close()
    same(found.groups, 1)


def test_nothing_is_left_open():
    before = open_files()
    for _ in range(3):
        shared = SharedSnapshots.create()
        for step in range(4):
            shared.write(step, groups(step, 1 + step * 300_000), {})
            shared.read()
        shared.close()
    assert open_files() == before


def test_state_that_json_cannot_hold_costs_nothing(shared):
    shared.write(1, groups(1), {})
    with pytest.raises(UserCodeError, match="state.bad"):
        shared.write(2, groups(2), {"bad": object()})
    same(shared.read().groups, 1)


def test_committed_is_the_highest_of_all_workers(shared):
    shared.commit(7)
    shared.commit(9, local_rank=1)
    shared.commit(8, local_rank=0)
    shared.commit(3, local_rank=1)
    assert shared.committed == 9


def test_a_forked_worker_writes_and_everybody_sees_it(shared):
    shared.write(1, groups(1), {})
    pid = os.fork()
    if not pid:
        try:
            shared.write(2, groups(2, 2_000_000), {"by": "child"})  # grows the block: the parent has to map anew
            shared.commit(2, 3)
            shared.close()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert (shared.newest(), shared.committed) == (2, 2)
    same(shared.read().groups, 2, 2_000_000)
    shared.write(3, groups(3, 2_000_000), {})
    shared.write(4, groups(4, 2_000_000), {})  # into the block that the child grew
    same(shared.read().groups, 4, 2_000_000)


def test_a_spawned_process_attaches_by_the_descriptors(shared):
    shared.write(1, groups(1), {})
    script = ("import sys; from hvtrain.checkpoint.memory import SharedSnapshots\n"
              "shared = SharedSnapshots.attach([int(fd) for fd in sys.argv[1:]])\n"
              "found = shared.read(); shared.write(found.step + 1, found.groups, {'by': 'child'}); shared.commit(5)")
    subprocess.run([sys.executable, "-c", script, *map(str, shared.fds)], pass_fds=shared.fds, check=True, timeout=60,
                   env={**os.environ, "PYTHONPATH": str(ROOT)})
    found = shared.read()
    assert (found.step, found.state, shared.committed) == (2, {"by": "child"}, 5)
    same(found.groups, 1)


def test_attach_refuses_other_descriptors(shared, tmp_path):
    with open(tmp_path / "file", "wb") as file:
        for fds in ([], [file.fileno()] * 3, shared.fds[::-1], shared.fds[:2], [10**6] * 3):
            with pytest.raises(UsageError, match="SharedSnapshots.fds"):
                SharedSnapshots.attach(fds)


def test_a_killed_writer_never_costs_the_snapshot_before(shared):
    """40 writers in a row, each killed at a random moment, each going on where the one before it was found.

    Their states grow, so that some die while they allocate; every other one dies before or in its first write.
    """
    chance, halved = random.Random(5), 0
    shared.write(0, groups(0), {"step": 0, "size": 1000})
    for turn in range(40):
        first, size = shared.newest() + 1, 2_000_000 + 100_000 * turn
        read_end, write_end = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                for step in range(first, first + 10_000):
                    shared.write(step, groups(step, size), {"step": step, "size": size})
                    os.write(write_end, step.to_bytes(8, "little"))
            finally:
                os._exit(1)
        os.close(write_end)
        if turn % 2:
            assert select.select([read_end], [], [], 30)[0]  # its first snapshot
        time.sleep(chance.uniform(0, 0.02))
        os.kill(pid, signal.SIGKILL)
        assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
        acknowledged = [int.from_bytes(number, "little") for number in iter(lambda: os.read(read_end, 8), b"")]
        os.close(read_end)
        last = acknowledged[-1] if acknowledged else first - 1
        found = shared.read()
        assert found.step == shared.newest() == found.state["step"]
        assert found.step in (last, last + 1)  # at best it died before it could say so
        same(found.groups, found.step, found.state["size"])
        halved += len(shared._records()) == 1
    assert halved >= 3, f"only {halved} of 40 kills hit a write"


def test_what_is_reserved_is_there_for_the_writes(shared):
    shared.write(1, groups(1), {})
    shared.reserve(groups(2, 2_000_000))
    same(shared.read().groups, 1)
    sizes = [os.fstat(fd).st_size for fd in shared.fds]
    assert min(sizes[1:]) > 8_000_000
    for step in (2, 3):
        shared.write(step, groups(step, 2_000_000), {"text": "x" * 100_000})
    assert [os.fstat(fd).st_size for fd in shared.fds] == sizes
    same(shared.read().groups, 3, 2_000_000)


def test_a_record_that_is_half_there_is_none(shared):
    shared.write(1, groups(1), {})
    shared.write(2, groups(2), {})
    os.pwrite(shared.fds[0], b"\x77", 128 + 9)  # a bit of the step of the newest
    assert shared.newest() == 1
    same(shared.read().groups, 1)


def test_a_damaged_outline_is_no_snapshot(shared):
    shared.write(1, groups(1), {})
    shared.write(2, groups(2), {})
    record = shared._records()[0]
    os.pwrite(shared.fds[2], b"!", record.tensor_bytes + 3)
    assert shared.read().step == 1


def test_out_of_memory_is_an_error_that_says_what_to_do(shared):
    """The kernel's own refusal, forced by a limit on the size of files; memory files have to obey it too."""
    shared.write(1, groups(1), {})
    shared.write(2, groups(2), {})
    sizes = [os.fstat(fd).st_size for fd in shared.fds]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, hard))
    try:
        with pytest.raises(EnvironmentNotReady, match="elastic.snapshot_every=null"):
            shared.write(3, groups(3, 3_000_000), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [os.fstat(fd).st_size for fd in shared.fds] == sizes
    same(shared.read().groups, 2)
    shared.write(3, groups(3), {})
    same(shared.read().groups, 3)


def test_more_than_the_host_has_left_is_not_even_tried(shared, monkeypatch):
    shared.write(1, groups(1), {})
    monkeypatch.setattr(memory_slot, "available", lambda: 5 << 20)
    with pytest.raises(EnvironmentNotReady, match="5 MiB are free, 8 MiB more are needed"):
        shared.write(2, groups(2, 2_000_000), {})
    same(shared.read().groups, 1)
    shared.write(2, groups(2, 1_000_000), {})
    assert shared.newest() == 2


def test_a_system_without_memory_files_is_told_so(monkeypatch):
    monkeypatch.delattr(os, "memfd_create")
    with pytest.raises(EnvironmentNotReady, match="elastic.snapshot_every=null"):
        SharedSnapshots.create()


def write_files(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_room_is_the_least_of_host_and_cgroups(tmp_path):
    assert available(tmp_path) == 2**63
    write_files(tmp_path, {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n"})
    assert available(tmp_path) == 8000 * 1024
    write_files(tmp_path, {
        "proc/self/cgroup": "0::/job/step\n", "sys/fs/cgroup/job/step/memory.max": "max\n",
        "sys/fs/cgroup/job/step/memory.current": "10\n", "sys/fs/cgroup/job/memory.max": "5000\n",
        "sys/fs/cgroup/job/memory.current": "3000\n", "sys/fs/cgroup/job/memory.stat": "anon 1\ninactive_file 1000\n"})
    assert available(tmp_path) == 3000  # the parent's limit, cache that can be dropped being free
    write_files(tmp_path, {"sys/fs/cgroup/job/memory.current": "9000\n"})
    assert available(tmp_path) == 0


def test_room_within_an_old_cgroup_whose_path_is_the_hosts(tmp_path):
    write_files(tmp_path, {
        "proc/meminfo": "MemAvailable: 8000 kB\n", "proc/self/cgroup": "5:cpu:/x\n4:memory:/docker/abc\n0::/\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "7000\n", "sys/fs/cgroup/memory/memory.usage_in_bytes": "6000\n",
        "sys/fs/cgroup/memory/memory.stat": "inactive_file 1\ntotal_inactive_file 500\n"})
    assert available(tmp_path) == 1500


def test_an_outline_survives_json_and_aligns_every_tensor():
    outline = Outline.of(groups(1, 7))
    assert Outline.from_json(json.loads(json.dumps(outline.to_json()))) == outline
    assert all(place.begin % ALIGNMENT == 0 for place in outline.places)
    assert outline.nbytes >= sum(place.nbytes for place in outline.places)


@pytest.mark.parametrize("value", [
    None, {}, "x", [1], [[]], [["model"]], [["model", {}]], [[1, []]], [["model", [["w", "F32"]]]],
    [["model", [["w", "F99", [1]]]]], [["model", [["w", ["F32"], [1]]]]], [["model", [["w", "F32", 4]]]],
    [["model", [["w", "F32", [-1]]]]], [["model", [["w", "F32", [1.0]]]]], [["model", [["w", "F32", [True]]]]],
    [["model", [["w", "F32", [2**70]]]]], [["model", [["w", "F32", [1] * 65]]]], [["model", [[1, "F32", [1]]]]],
    [["model", [["w", "F32", [1]], ["w", "F32", [2]]]]], [["model", []], ["model", []]],
], ids=repr)
def test_a_hostile_outline_is_refused(value):
    with pytest.raises(ProtocolError, match="outline of a state|in the outline"):
        Outline.from_json(value)
