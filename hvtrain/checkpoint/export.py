"""Take the weights out of a checkpoint as one file that other programs load."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from hvtrain.checkpoint.disk import HashedFile, opened_directory, opened_file, read_at, sync_directory
from hvtrain.checkpoint.manifest import Manifest, check_layout
from hvtrain.checkpoint.store import Store
from hvtrain.checkpoint.tensorfile import SUFFIX, write_tensors
from hvtrain.errors import CheckpointDamaged, CheckpointMissing, EnvironmentNotReady


def export_weights(store: Store, checkpoint: Path, output: Path, weights: str = "model") -> int:
    """Write the group ``weights`` to the safetensors file ``output``, replacing it atomically; bytes written.

    "ema" takes what has no average from "model". Raises CheckpointMissing without the group,
    CheckpointDamaged for a bad file, EnvironmentNotReady if ``output`` cannot be written.
    """
    manifest = store.manifest(checkpoint)
    if weights not in manifest.groups:
        raise CheckpointMissing(f"Checkpoint {checkpoint} has no {weights} weights; it has "
                                f"{', '.join(manifest.groups) or 'no tensors'}.")
    directory = output.absolute().parent
    temporary = f".{output.name}-{secrets.token_hex(4)}"
    try:
        with opened_directory(directory.resolve()) as target:
            try:
                with HashedFile(target, temporary) as file:
                    if weights == "ema" and "model" in manifest.groups:
                        groups = store.read(checkpoint, ["model", "ema"]).groups
                        kind = "pt" if manifest.framework == "torch" else "np"
                        write_tensors(file, {**groups["model"], **groups["ema"]}, {"format": kind})
                        file.commit()
                    else:
                        _copy(checkpoint, weights + SUFFIX, manifest, file)
                os.rename(temporary, output.name, src_dir_fd=target, dst_dir_fd=target)
            except BaseException:
                try:
                    os.unlink(temporary, dir_fd=target)
                except FileNotFoundError:
                    pass
                raise
            sync_directory(target)
    except OSError as error:
        if isinstance(error, CheckpointMissing):
            raise
        raise EnvironmentNotReady(f"{output} cannot be written: {error.strerror}.") from error
    return file.size


def _copy(checkpoint: Path, name: str, manifest: Manifest, file: HashedFile) -> None:
    # The group's file is already what is wanted; it is checked on the way, and needs no memory.
    with opened_directory(checkpoint) as source, opened_file(source, name) as (descriptor, size):
        check_layout(descriptor, size)
        position = 0
        while position < size:
            piece = read_at(descriptor, size - position, position)
            if not piece:
                break
            file.write(piece)
            position += len(piece)
        if file.commit() != manifest.files[name].sha256:
            raise CheckpointDamaged(f"Checkpoint {checkpoint} is damaged: {name} does not match its sha256.")
