"""Writing, finding, reading and removing checkpoints; damaged, hostile and left-over directories."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import subprocess
import sys

import numpy as np
import pytest

from hvtrain.checkpoint import Blob, Manifest, Retention, Snapshot, Store, temporary, verify, write, writer
from hvtrain.checkpoint.digest import digest
from hvtrain.errors import CheckpointDamaged, CheckpointError, CheckpointMissing


def snapshot(step=200, value=1.0, **more):
    groups = {"model": {"w": Blob.from_numpy(np.full((4, 3), value, "f4")), "n": Blob("I64", (), bytes(8))},
              "optimizer": {"w.m": Blob.from_numpy(np.full((4, 3), value / 2, "f4"))}}
    fields = dict(step=step, epoch=2, groups=groups, world_size=4,
                  metrics={"accuracy": 0.5, "loss": math.nan},
                  state={"cursor": 96, "schedule": {"best": -math.inf}})
    return Snapshot(**{**fields, **more})


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "run" / "checkpoints")


def forge(path, change):
    """Rewrite a manifest with a right digest, as an attacker would."""
    raw = json.loads((path / "manifest.json").read_text())
    del raw["digest"]
    change(raw)
    text = json.dumps(raw, sort_keys=True, separators=(",", ":"))
    raw["digest"] = hashlib.sha256(text.encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(raw))


def test_round_trip(store):
    original = snapshot()
    written = write(store, original)
    assert written.path == store.directory / "step-00000200" and not written.kept
    assert sorted(os.listdir(store.directory)) == ["step-00000200"]
    assert sorted(os.listdir(written.path)) == ["manifest.json", "model.safetensors", "optimizer.safetensors",
                                                "state.json"]
    found = store.read(store.newest_sound())
    assert found.groups == original.groups and found.state == original.state
    assert (found.step, found.epoch, found.world_size, found.cursor) == (200, 2, 4, 96)
    assert found.metrics["accuracy"] == 0.5 and math.isnan(found.metrics["loss"])
    assert digest(found) == digest(original) == digest(written.path)
    manifest = store.manifest(written.path)
    assert manifest == written.manifest or math.isnan(manifest.metrics["loss"])
    assert manifest.groups == ["model", "optimizer"] and manifest.cursor == 96
    assert verify(written.path) == []
    only = store.read(written.path, ["model"])
    assert set(only.groups) == {"model"}
    with pytest.raises(CheckpointMissing, match="ema"):
        store.read(written.path, ["ema"])


def test_any_state_that_a_snapshot_takes_comes_back(store):
    nested: object = 0
    for _ in range(60):
        nested = [nested]
    original = snapshot(state={"nested": nested, "text": "ü\ud7ff", "big": 2**70, "float": 0.1})
    assert store.read(write(store, original).path).state == original.state


def test_digest_sees_every_bit_name_and_shape():
    base = {"a": Blob("F32", (2,), bytes(8)), "b": Blob("F32", (1,), bytes(4))}
    others = [
        {"a": Blob("F32", (2,), bytes(7) + b"\1"), "b": base["b"]}, {"a": base["a"], "c": base["b"]},
        {"a": Blob("F32", (1, 2), bytes(8)), "b": base["b"]},
        {"a": Blob("I32", (2,), bytes(8)), "b": base["b"]},
        {"a": Blob("F32", (1,), bytes(4)), "b": Blob("F32", (2,), bytes(8))}, {"a": base["a"]},
    ]
    digests = {digest(snapshot(groups={"model": tensors})) for tensors in [base, *others]}
    assert len(digests) == 1 + len(others)
    assert digest(snapshot(groups={"model": dict(reversed(base.items()))})) in digests


def test_empty_store(store):
    assert store.steps() == [] and store.newest_sound() is None and store.load_newest() is None
    assert store.clean() == [] and store.sound() == {}
    with pytest.raises(CheckpointMissing, match="Steps there: none"):
        store.path(3)


def test_a_step_written_again_is_kept_if_equal_and_replaced_if_not(store):
    first = write(store, snapshot())
    inode = os.stat(first.path).st_ino
    again = write(store, snapshot())
    assert again.kept and os.stat(first.path).st_ino == inode
    assert again.manifest.created == first.manifest.created
    other = write(store, snapshot(value=2.0))
    assert not other.kept and other.path == first.path
    assert os.listdir(store.directory) == ["step-00000200"]
    assert store.read(other.path).groups == snapshot(value=2.0).groups


def test_equal_but_damaged_is_replaced(store):
    path = write(store, snapshot()).path
    (path / "model.safetensors").write_bytes(b"x")
    assert not write(store, snapshot()).kept
    assert verify(path) == []


def test_a_step_written_again_without_exchange_of_names(store, monkeypatch):
    monkeypatch.setattr(writer, "exchange", lambda one, other: False)
    write(store, snapshot(100))
    write(store, snapshot())
    seen = []
    real = os.rename

    def spy(source, target, **more):
        real(source, target, **more)
        seen.append(store.newest_sound())

    monkeypatch.setattr(os, "rename", spy)
    path = write(store, snapshot(value=2.0)).path
    assert path.name == "step-00000200.r1" and store.path(200) == path and store.steps() == [100, 200]
    assert write(store, snapshot(value=2.0)).kept
    assert write(store, snapshot(value=3.0)).path.name == "step-00000200.r2"
    assert sorted(os.listdir(store.directory)) == ["step-00000100", "step-00000200.r2"]
    assert all("step-00000200" in path.name for path in seen) and len(seen) >= 4
    assert store.read(store.path(200)).groups == snapshot(value=3.0).groups


@pytest.mark.parametrize("damage, reason", [
    (lambda path: (path / "model.safetensors").write_bytes(b""), "has 0 bytes, expected"),
    (lambda path: (path / "state.json").unlink(), "state.json is missing"),
    (lambda path: (path / "manifest.json").unlink(), "manifest.json is missing"),
    (lambda path: (path / "manifest.json").write_text("{"), "not JSON"),
    (lambda path: (path / "manifest.json").write_text("[" * 10**5), "not JSON"),
    (lambda path: (path / "manifest.json").write_text("[]"), "not a JSON object"),
    (lambda path: (path / "manifest.json").write_bytes(bytes(2 << 20)), "at most"),
    (lambda path: (path / "manifest.json").write_text(
        (path / "manifest.json").read_text().replace('"epoch": 2', '"epoch": 3')), "its own digest"),
    (lambda path: forge(path, lambda raw: raw.update(step=7)), "of step 7"),
    (lambda path: forge(path, lambda raw: raw.update(schema_version=2)), "upgrade hvtrain"),
    (lambda path: forge(path, lambda raw: raw.update(extra=1)), "extra"),
    (lambda path: forge(path, lambda raw: raw.update(step=True)), "step"),
])
def test_damaged_ones_are_skipped_with_the_reason(store, caplog, damage, reason):
    older = write(store, snapshot(100)).path
    path = write(store, snapshot(200)).path
    damage(path)
    assert any(reason in problem for problem in verify(path)), verify(path)
    with caplog.at_level(logging.WARNING):
        assert store.newest_sound() == older
    assert "step-00000200" in caplog.text and reason in caplog.text
    caplog.clear()
    found, loaded = store.load_newest(logging.getLogger("mine"))
    assert found == older and loaded.step == 100 and reason in caplog.text
    with pytest.raises(CheckpointDamaged, match="step-00000200 is damaged"):
        store.read(path)
    assert list(store.sound()) == [older]


def test_every_single_flipped_byte_is_found(store):
    path = write(store, snapshot()).path
    for name in os.listdir(path):
        original = (path / name).read_bytes()
        for position in range(0, len(original), max(1, len(original) // 40)):
            changed = bytearray(original)
            changed[position] ^= 1
            (path / name).write_bytes(changed)
            assert verify(path), f"{name} byte {position}"
            with pytest.raises(CheckpointDamaged):
                store.read(path)
        (path / name).write_bytes(original)
    assert verify(path) == []


@pytest.mark.parametrize("name", [
    "../../etc/passwd", "/etc/passwd", "..", ".", "", "a/b.safetensors", "../x.safetensors",
    "model.safetensors\0", "model.safetensors\n", "manifest.json", "C:\\x.safetensors",
    ".hidden.safetensors", "x.pkl",
])
def test_manifests_naming_other_files_are_refused(store, name):
    path = write(store, snapshot()).path
    forge(path, lambda raw: raw["files"].update({name: {"sha256": "0" * 64, "size": 1}}))
    assert "not a name" in verify(path)[0]
    with pytest.raises(CheckpointDamaged, match="not a name"):
        store.read(path)


@pytest.mark.parametrize("size", [2**40, 2**62, 2**63, 10**30, -1, 1.5, "9", True])
def test_huge_and_nonsense_sizes_are_refused_before_memory_is_taken(store, size):
    path = write(store, snapshot()).path
    forge(path, lambda raw: raw["files"]["model.safetensors"].update(size=size))
    assert verify(path)
    with pytest.raises(CheckpointError):
        store.read(path)


def test_a_truthful_huge_sparse_file_is_refused_for_lack_of_memory(store):
    path = write(store, snapshot()).path
    os.truncate(path / "model.safetensors", 2**42)
    forge(path, lambda raw: raw["files"]["model.safetensors"].update(size=2**42))
    with pytest.raises(CheckpointError, match="bytes of memory"):
        store.read(path)


@pytest.mark.parametrize("kind", ["link", "fifo", "directory"])
def test_things_that_are_not_files_are_refused(store, tmp_path, kind):
    path = write(store, snapshot()).path
    victim = path / "model.safetensors"
    content = victim.read_bytes()
    victim.unlink()
    if kind == "link":  # even with the right content
        (tmp_path / "elsewhere").write_bytes(content)
        victim.symlink_to(tmp_path / "elsewhere")
    elif kind == "fifo":
        os.mkfifo(victim)
    else:
        victim.mkdir()
    assert verify(path)
    with pytest.raises(CheckpointDamaged, match="symbolic link" if kind == "link" else "regular file"):
        store.read(path)
    with pytest.raises(CheckpointDamaged):
        digest(path)


def test_linked_step_directories_are_not_checkpoints(store, tmp_path):
    path = write(store, snapshot(100)).path
    outside = tmp_path / "outside"
    os.rename(path, outside)
    path.symlink_to(outside)
    assert store.steps() == [] and verify(path) and store.newest_sound() is None
    with pytest.raises(CheckpointDamaged):
        store.read(path)
    written = write(store, snapshot(100)).path  # takes the link's place and leaves its target alone
    assert not written.is_symlink() and verify(written) == [] and verify(outside) == []
    assert os.listdir(store.directory) == ["step-00000100"]


def test_foreign_names_are_ignored(store):
    write(store, snapshot(5))
    for name in ("step-5", "step-000000005", "step-00000006.r0", "step-00000007.bak", "step-0000000x"):
        (store.directory / name).mkdir()
    assert store.steps() == [5]


def test_remove_and_prune(store):
    for step in range(100, 700, 100):
        write(store, snapshot(step, metrics={"accuracy": 1.0 if step == 200 else 0.5}))
    (store.directory / "step-00000500" / "state.json").unlink()
    rules = Retention(keep=2, best_metric="accuracy")
    doomed = [store.directory / f"step-{step:08d}" for step in (100, 300)]
    assert store.prune(rules, dry_run=True) == doomed and len(store.steps()) == 6
    assert store.prune(rules) == doomed
    assert store.steps() == [200, 400, 500, 600]  # 500 is damaged: neither counted nor deleted
    store.remove(store.path(500))
    with pytest.raises(CheckpointMissing):
        store.remove(store.directory / "step-00000500")
    assert sorted(os.listdir(store.directory)) == ["step-00000200", "step-00000400", "step-00000600"]


def test_thorough_prune_does_not_trust_sizes(store):
    for step in (100, 200, 300):
        write(store, snapshot(step))
    path = store.path(300) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    assert store.prune(Retention(keep=1), quick=False) == [store.directory / "step-00000100"]
    assert store.newest_sound() == store.path(200)


CHILD = "import sys; from pathlib import Path; from hvtrain.checkpoint import temporary; " \
        "w = temporary.create(Path(sys.argv[1]), 9); print(w.path, flush=True); sys.stdin.read()"


def test_left_overs_of_dead_writers_go_and_live_ones_stay(store):
    write(store, snapshot(1))
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(store.directory)], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, text=True)
    try:
        path = child.stdout.readline().strip()
        own = temporary.create(store.directory, 3)
        (store.directory / ".trash-step-00000000-abc").mkdir()
        assert store.clean() == [".trash-step-00000000-abc"]
        assert os.path.isdir(path) and own.path.is_dir()
        child.kill()
        child.wait()
        assert store.clean() == [os.path.basename(path)]
        own.close()  # the lock is gone but the process named in the directory still runs
        assert store.clean() == [] and own.path.is_dir()
    finally:
        child.kill()
        child.wait()
        child.stdin.close()
        child.stdout.close()


@pytest.mark.parametrize("owner, gone", [
    ("{machine}-{dead}-1", True),  # ours, no such process
    ("{machine}-{self}-1", True),  # the pid runs, but is another process than the one that wrote
    ("000000000000-{self}-1", False),  # of another machine
])
def test_left_overs_without_file_locks(store, monkeypatch, owner, gone):
    monkeypatch.setattr(temporary, "_lock", lambda descriptor: None)
    write(store, snapshot(1))
    owner = owner.format(machine=temporary._machine(), self=os.getpid(), dead=2**22 + 1)
    path = store.directory / f".tmp-00000009-{owner}-01234567"
    path.mkdir()
    store.clean()
    assert path.is_dir() is not gone


def test_a_left_over_of_another_machine_goes_if_its_lock_is_free(store):
    store.directory.mkdir(parents=True)
    (store.directory / ".tmp-00000009-000000000000-1-1-01234567").mkdir()
    assert len(store.clean()) == 1


def test_a_live_writer_on_another_machine_is_left_alone(store, monkeypatch):
    store.directory.mkdir(parents=True)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(temporary, "_machine", lambda: "0" * 12)
        theirs = temporary.create(store.directory, 9)
    assert store.clean() == [] and theirs.path.is_dir()  # for its lock alone
    theirs.close()
    assert store.clean() == [theirs.path.name]


def test_a_directory_swept_before_it_was_locked_is_made_again(store, monkeypatch):
    store.directory.mkdir(parents=True)
    real, swept = temporary._lock, []

    def swept_first(descriptor):
        if not swept:
            swept.extend(store.directory.iterdir())
            swept[0].rmdir()
        return real(descriptor)

    monkeypatch.setattr(temporary, "_lock", swept_first)
    made = temporary.create(store.directory, 9)
    assert made.path.is_dir() and made.path != swept[0]
    made.close()


def test_left_over_links_are_not_followed(store, tmp_path):
    write(store, snapshot(1))
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("x")
    (store.directory / ".tmp-evil").symlink_to(tmp_path / "precious")
    (store.directory / ".trash-evil").symlink_to(tmp_path / "precious")
    store.clean()
    assert (tmp_path / "precious" / "file").exists()


@pytest.mark.parametrize("change", [
    {"created": "2026-01-01\x1b[2J"}, {"framework": "torch\n"}, {"hvtrain_version": "\x1b]0;title\x07"},
    {"metrics": {"loss\x1b[31m": 1.0}}, {"files": {"\x1b[2J": 1}}, {"\x1b[2J": 1}])
def test_nothing_that_a_terminal_would_obey_comes_from_a_manifest(store, change):
    """Commands print what a manifest says, and what is wrong with it."""
    path = write(store, snapshot()).path
    forge(path, lambda raw: raw.update(change))
    with pytest.raises(CheckpointDamaged) as caught:
        store.manifest(path)
    assert str(caught.value).isprintable() and all(problem.isprintable() for problem in verify(path))


def test_a_manifest_survives_its_own_text():
    entry = {"sha256": "0" * 64, "size": 2}
    manifest = Manifest.describe(snapshot(metrics={"a": math.inf, "b": 0.1}), {"state.json": entry})
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest
    with pytest.raises(CheckpointDamaged, match="state.json is not listed"):
        Manifest.from_bytes(manifest.to_bytes().replace(b"state.json", b"m.safetensors"))
