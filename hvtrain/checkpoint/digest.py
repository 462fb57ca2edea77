"""One number for a model's weights, so that two runs can be compared bit for bit."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from hvtrain.checkpoint.disk import hash_file, opened_directory, opened_file, read_at
from hvtrain.checkpoint.manifest import load
from hvtrain.checkpoint.snapshot import Snapshot
from hvtrain.checkpoint.tensorfile import SUFFIX, header_length, read_layout
from hvtrain.errors import CheckpointDamaged, CheckpointMissing


def digest(source: Snapshot | str | os.PathLike[str], group: str = "model") -> str:
    """The sha256 in hex over all tensors of a group: name, dtype, shape and bytes, in the order of the names.

    ``source`` is a Snapshot or a checkpoint directory, of which the group's file is checked first and never
    held in memory as a whole. Raises CheckpointMissing without that group, CheckpointDamaged for a bad file.
    """
    if isinstance(source, Snapshot):
        if group not in source.groups:
            raise CheckpointMissing(f"The snapshot of step {source.step} has no {group}.")
        result = hashlib.sha256()
        for name, blob in sorted(source.groups[group].items()):
            result.update(_head(name, blob.dtype, blob.shape))
            result.update(blob.data)
        return result.hexdigest()
    return _digest_directory(Path(source), group)


def _digest_directory(path: Path, group: str) -> str:
    try:
        with opened_directory(path) as directory:
            manifest = load(directory, path.name)
            entry = manifest.files.get(group + SUFFIX)
            if entry is None:
                raise CheckpointMissing(f"Checkpoint {path} has no {group}; it has "
                                        f"{', '.join(manifest.groups)}.")
            with opened_file(directory, group + SUFFIX) as (descriptor, size):
                if size != entry.size or hash_file(descriptor, size) != entry.sha256:
                    raise CheckpointDamaged(f"{group}{SUFFIX} does not match its size and sha256")
                return _digest_file(descriptor, size)
    except CheckpointDamaged as error:
        raise CheckpointDamaged(f"Checkpoint {path} is damaged: {error}.") from None
    except (FileNotFoundError, NotADirectoryError) as error:
        if isinstance(error, CheckpointMissing):
            raise
        raise CheckpointMissing(f"There is no checkpoint {path}.") from None


def _digest_file(descriptor: int, size: int) -> str:
    length = header_length(read_at(descriptor, 8, 0), size)
    header = bytearray()
    while len(header) < length:
        piece = read_at(descriptor, length - len(header), 8 + len(header))
        if not piece:
            raise CheckpointDamaged("the file became shorter while it was read")
        header += piece
    slots = read_layout(header, size)
    result = hashlib.sha256()
    for name, slot in sorted(slots.items()):
        result.update(_head(name, slot.dtype, slot.shape))
        position = slot.begin
        while position < slot.end:
            piece = read_at(descriptor, slot.end - position, position)
            if not piece:
                raise CheckpointDamaged("the file became shorter while it was read")
            result.update(piece)
            position += len(piece)
    return result.hexdigest()


def _head(name: str, dtype: str, shape: Any) -> bytes:
    # JSON, so that no two lists of tensors give the same stream of bytes
    return json.dumps([name, dtype, list(shape)]).encode() + b"\n"
