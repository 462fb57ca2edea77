"""Write a checkpoint so that a crash at any moment leaves either the whole of it or nothing.

    sweep left-overs of dead writers
    .tmp-.../  <group>.safetensors  (written, hashed, fsync)  one after the other
               state.json           (fsync)
               manifest.json        (fsync)   last: its presence says that the rest is complete
    fsync .tmp-...                            the entries of the directory
    rename .tmp-... -> step-00000200          the moment at which it exists
    fsync checkpoints/                        the moment from which it survives a power cut

A step that is there already is swapped with the new directory in one atomic exchange of names. Where the
file system cannot do that, the new one becomes ``step-00000200.r1``, which readers prefer, before the old
one goes.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, ContextManager

from hvtrain.checkpoint import temporary
from hvtrain.checkpoint.disk import (
    HashedFile, exchange, free_bytes, human_size, make_directories, remove_tree, sync_directory,
)
from hvtrain.checkpoint.manifest import FILE_NAME, STATE_NAME, FileEntry, Manifest, verify
from hvtrain.checkpoint.snapshot import Snapshot
from hvtrain.checkpoint.store import Store, step_name
from hvtrain.checkpoint.tensorfile import SUFFIX, write_tensors
from hvtrain.errors import CheckpointError, CheckpointWriteFailed

_log = logging.getLogger(__name__)
_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up",
         errno.EFBIG: "a file may not become that large here (ulimit -f)"}
_DENIED = {errno.EROFS: "it is read-only", errno.EACCES: "writing is not permitted",
           errno.EPERM: "writing is not permitted"}


@dataclass(frozen=True)
class Written:
    """A checkpoint on the disk. ``kept`` is True if an equal one was there already and stayed."""

    path: Path
    manifest: Manifest
    seconds: float
    kept: bool = False


def write(store: Store, snapshot: Snapshot, passage: Callable[[], ContextManager[None]] = nullcontext) -> Written:
    """Write ``snapshot`` into ``store``; when this returns it survives a power cut.

    It comes to exist within a ``passage()``, which may raise GivenUp (:mod:`hvtrain.checkpoint.fence`). Raises CheckpointWriteFailed when the disk is full, read-only or fails; older checkpoints, also an older
    one of the same step, are intact then, and nothing half-written is left.
    """
    begin = time.monotonic()
    workspace = None
    try:
        make_directories(store.directory)
        store.clean()
        workspace = temporary.create(store.directory, snapshot.step)
        manifest = _fill(workspace.descriptor, snapshot)
        path, equal = _publish(store, workspace, manifest, passage)
    except OSError as error:
        _clear(workspace)
        if isinstance(error, CheckpointError):
            raise
        raise _explain(error, store.directory, snapshot.nbytes) from error
    except BaseException:
        _clear(workspace)
        raise
    finally:
        if workspace is not None:
            workspace.close()
    return Written(path, equal or manifest, time.monotonic() - begin, kept=equal is not None)


def _fill(directory: int, snapshot: Snapshot) -> Manifest:
    metadata = {"format": "pt" if snapshot.framework == "torch" else "np"}  # what other loaders look for
    files = {}
    for group in sorted(snapshot.groups):
        with HashedFile(directory, group + SUFFIX) as file:
            write_tensors(file, snapshot.groups[group], metadata)
            files[group + SUFFIX] = FileEntry(sha256=file.commit(), size=file.size)
    with HashedFile(directory, STATE_NAME) as file:
        file.write(json.dumps(snapshot.state, sort_keys=True).encode())
        files[STATE_NAME] = FileEntry(sha256=file.commit(), size=file.size)
    manifest = Manifest.describe(snapshot, files)
    with HashedFile(directory, FILE_NAME) as file:
        file.write(manifest.to_bytes())
        file.commit()
    sync_directory(directory)
    return manifest


def _publish(store: Store, workspace: temporary.Workspace, manifest: Manifest,
             passage: Callable[[], ContextManager[None]]) -> tuple[Path, Manifest | None]:
    """Name the finished directory. If an equal sound one is there and stays: that one, and its manifest."""
    while True:
        older = store.candidates(manifest.step)
        for path in older:
            equal = _equal(store, path, manifest)
            if equal is not None:
                remove_tree(workspace.path)
                sync_directory(store.directory)
                return path, equal
        final = store.directory / step_name(manifest.step)
        plain = all(path == final for path in older)
        try:
            with passage():
                new = plain and not os.path.lexists(final)
                exchanged = not new and plain and exchange(workspace.path, final)
                if new:
                    os.rename(workspace.path, final)
                elif not exchanged:
                    target = _next_revision(store, manifest.step)
                    os.rename(workspace.path, target)
            if new or exchanged:
                sync_directory(store.directory)
                if exchanged:
                    remove_tree(workspace.path)  # by now the older one
                return final, None
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # another writer took the name just now
                continue
            raise
        sync_directory(store.directory)
        found = store.candidates(manifest.step)
        for path in found[found.index(target) + 1:] if target in found else ():
            _remove_quietly(path)  # lower revisions than ours, so none is another writer's newer one
        return target, None


def _equal(store: Store, path: Path, manifest: Manifest) -> Manifest | None:
    try:
        found = store.manifest(path)
    except CheckpointError:
        return None
    return found if manifest.same_content(found) and not verify(path) else None


def _next_revision(store: Store, step: int) -> Path:
    revision = 1
    while os.path.lexists(store.directory / step_name(step, revision)):
        revision += 1
    # never below one that is there: readers prefer the highest
    highest = max((int(path.name.partition(".r")[2] or 0) for path in store.candidates(step)), default=0)
    return store.directory / step_name(step, max(revision, highest + 1))


def _clear(workspace: temporary.Workspace | None) -> None:
    if workspace is None:
        return
    _remove_quietly(workspace.path)


def _remove_quietly(path: Path) -> None:
    try:
        remove_tree(path) if path.name.startswith(temporary.PREFIX) else temporary.discard(path)
    except OSError as error:  # the checkpoint itself is safe, or the first error matters more
        _log.warning("%s cannot be removed: %s.", path, error.strerror)


def _explain(error: OSError, directory: Path, needed: int) -> CheckpointWriteFailed:
    free = free_bytes(directory)
    sizes = f"{human_size(needed)} are needed" + ("" if free is None else f", {human_size(free)} are free")
    if error.errno in _FULL:
        reason = _FULL[error.errno]
        advice = "Free some space, say with hvtrain ckpt prune, or set checkpoint.dir to another disk"
    elif error.errno in _DENIED:
        reason = _DENIED[error.errno]
        advice = "Make it writable for this user, or set checkpoint.dir to another directory"
    else:
        reason = error.strerror or str(error)
        advice = "Check the disk, or set checkpoint.dir to another directory"
    failure = CheckpointWriteFailed(f"The checkpoint cannot be written to {directory}: {reason} ({sizes}). "
                                    f"Checkpoints written before are intact. {advice}.")
    failure.errno = error.errno
    return failure
