"""The manifest of a checkpoint: what it is, and the size and sha256 of every file in it."""

from __future__ import annotations

import hashlib
import json
import math
import re
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, Mapping

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_serializer, field_validator

from hvtrain.checkpoint.disk import hash_file, opened_directory, opened_file, read_all_at, read_into
from hvtrain.checkpoint.snapshot import GROUP_NAME, Snapshot
from hvtrain.checkpoint.tensorfile import SUFFIX, header_length, read_layout
from hvtrain.errors import CheckpointDamaged

FILE_NAME, STATE_NAME = "manifest.json", "state.json"
SCHEMA_VERSION = 1
_MAX_BYTES = 1 << 20
_SHOWN = r"^[ -~]*$"  # commands print it: no control characters, which a terminal obeys
_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class FileEntry(BaseModel):
    """One file of a checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of the whole file, in hex")
    size: int = Field(ge=0, lt=2**63, description="bytes")


class Manifest(BaseModel):
    """Describes a checkpoint; written last, so a directory with a manifest was complete."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    schema_version: Literal[1] = 1
    step: int = Field(ge=0, description="completed steps")
    epoch: int = Field(ge=0, description="the epoch that the next step belongs to")
    cursor: int = Field(ge=0, description="samples of that epoch already used")
    world_size: int = Field(ge=1, description="ranks at the time of writing; any number can resume")
    created: str = Field(max_length=64, pattern=_SHOWN, description="ISO 8601, UTC")
    hvtrain_version: str = Field(max_length=64, pattern=_SHOWN, description="what wrote it")
    framework: str = Field(max_length=64, pattern=_SHOWN, description="torch, keras or numpy")
    metrics: dict[str, float] = Field(description="the latest evaluation's, by name")
    files: dict[str, FileEntry] = Field(description="every other file, by name")
    digest: str = Field(default="", pattern=r"^([0-9a-f]{64})?$",
                        description="sha256 of the rest, canonical JSON")

    @field_validator("files")
    @classmethod
    def _plain_names(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        for name in files:
            if name != STATE_NAME and not is_tensor_file(name):
                raise ValueError(f"{name[:100]!r} is not a name that a checkpoint's file can have")
        if STATE_NAME not in files:
            raise ValueError(f"{STATE_NAME} is not listed")
        return files

    @field_validator("metrics")
    @classmethod
    def _printable_names(cls, metrics: dict[str, float]) -> dict[str, float]:
        for name in metrics:
            if not name.isprintable():
                raise ValueError(f"{name[:100]!r} is not a name that a metric can have")
        return metrics

    @field_validator("metrics", mode="before")
    @classmethod
    def _numbers(cls, metrics: Any) -> Any:
        # JSON has no NaN: they are written as strings
        if isinstance(metrics, dict):
            return {key: _SPECIAL.get(value, value) if isinstance(value, str) else value
                    for key, value in metrics.items()}
        return metrics

    @field_serializer("metrics")
    def _strings(self, metrics: dict[str, float]) -> dict[str, float | str]:
        return {key: value if math.isfinite(value) else
                "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
                for key, value in metrics.items()}

    @classmethod
    def describe(cls, snapshot: Snapshot, files: Mapping[str, FileEntry]) -> Manifest:
        """The manifest of ``snapshot``, stored in ``files``, made now."""
        import hvtrain

        fields = dict(
            step=snapshot.step, epoch=snapshot.epoch, cursor=snapshot.cursor, world_size=snapshot.world_size,
            created=datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            hvtrain_version=str(getattr(hvtrain, "__version__", "unknown")), framework=snapshot.framework,
            metrics=snapshot.metrics, files=dict(files))
        draft = cls(**fields)
        return cls(**fields, digest=_digest(draft.model_dump(exclude={"digest"})))

    @property
    def nbytes(self) -> int:
        """Bytes of all files together."""
        return sum(entry.size for entry in self.files.values())

    @property
    def groups(self) -> list[str]:
        """Names of the tensor groups."""
        return sorted(name[:-len(SUFFIX)] for name in self.files if name != STATE_NAME)

    def same_content(self, other: Manifest) -> bool:
        """True if both describe the same files and position, whenever and by whatever version written."""
        ignored = {"created", "hvtrain_version", "digest"}
        return self.model_dump(exclude=ignored) == other.model_dump(exclude=ignored)

    def to_bytes(self) -> bytes:
        """The text of manifest.json."""
        return json.dumps(self.model_dump(), indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"

    @classmethod
    def from_bytes(cls, text: bytes) -> Manifest:
        """Parse and check; CheckpointDamaged says what is wrong."""
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise CheckpointDamaged(f"{FILE_NAME} is not JSON: {error}") from None
        if not isinstance(raw, dict):
            raise CheckpointDamaged(f"{FILE_NAME} is not a JSON object")
        version = raw.get("schema_version")
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise CheckpointDamaged(f"{FILE_NAME} has schema version {version}, this hvtrain reads up to "
                                    f"{SCHEMA_VERSION}; upgrade hvtrain")
        try:
            manifest = cls.model_validate(raw)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            where = ".".join(ascii(part)[1:-1][:100] if isinstance(part, str) else str(part) for part in first["loc"])
            raise CheckpointDamaged(f"{FILE_NAME}: {where}: {first['msg']}") from None
        digest = _digest({key: value for key, value in raw.items() if key != "digest"})
        if manifest.digest != digest:
            raise CheckpointDamaged(f"{FILE_NAME} does not match its own digest")
        return manifest


def is_tensor_file(name: str) -> bool:
    """True for "<group>.safetensors" with a plain group name."""
    return name.endswith(SUFFIX) and GROUP_NAME.fullmatch(name[:-len(SUFFIX)]) is not None


def load(directory: int, name: str = "") -> Manifest:
    """The manifest of an open checkpoint directory. ``name`` is the directory's own; if that is a step's, the
    manifest must be of the same step. CheckpointDamaged otherwise."""
    with opened_file(directory, FILE_NAME) as (descriptor, size):
        if size > _MAX_BYTES:
            raise CheckpointDamaged(f"{FILE_NAME} has {size} bytes, at most {_MAX_BYTES} are read")
        text = bytearray(size)
        read_into(descriptor, memoryview(text))
    manifest = Manifest.from_bytes(bytes(text))
    named = re.fullmatch(r"step-(\d+)(\.r\d+)?", name)
    if named and int(named[1]) != manifest.step:
        raise CheckpointDamaged(f"{FILE_NAME} is of step {manifest.step}")
    return manifest


def verify(directory: Path, *, quick: bool = False) -> list[str]:
    """What is wrong with a checkpoint directory, one sentence each; empty if it is sound.

    Reads every byte; ``quick`` compares names and sizes only.
    """
    try:
        with opened_directory(Path(directory)) as descriptor:
            manifest = load(descriptor, Path(directory).name)
            files = sorted(manifest.files.items())
            problems = [_check(descriptor, name, entry, quick) for name, entry in files]
            return [problem for problem in problems if problem]
    except CheckpointDamaged as error:
        return [str(error)]
    except OSError as error:
        return [f"cannot be opened as a directory: {error.strerror}"]


def check_layout(descriptor: int, size: int) -> None:
    """Raise CheckpointDamaged unless an open file of ``size`` bytes has the layout of the safetensors format.

    Its sha256 may be right and its content anything.
    """
    header = read_all_at(descriptor, header_length(read_all_at(descriptor, min(8, size), 0), size), 8)
    read_layout(header, size)


def _check(directory: int, name: str, entry: FileEntry, quick: bool) -> str | None:
    try:
        with opened_file(directory, name) as (descriptor, size):
            if size != entry.size:
                return f"{name} has {size} bytes, expected {entry.size}"
            if not quick and hash_file(descriptor, size) != entry.sha256:
                return f"{name} does not match its sha256"
            if not quick and name != STATE_NAME:
                check_layout(descriptor, size)
    except CheckpointDamaged as error:
        return str(error) if str(error).startswith(name) else f"{name} {error}"
    return None


def _digest(fields: Mapping[str, Any]) -> str:
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
