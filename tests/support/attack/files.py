"""What is tried with files: a checkpoint that somebody else has made, names that lead elsewhere, secrets left about."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Callable

from hvtrain.checkpoint import verify
from tests.support.attack.target import Target

STEP = "step-99999999"


def _hvtrain(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "hvtrain.cli.main", *arguments], capture_output=True, text=True, timeout=60)


def pickle_as_checkpoint(target: Target) -> str:
    """A directory that looks newer than all others: its weights are a pickle, under every name that might be loaded."""
    directory = target.run_dir / "checkpoints" / STEP
    _forge(directory, {"model.safetensors": target.bomb, "optimizer.safetensors": target.bomb}, target.bomb)
    for name in ("model.pt", "model.pkl", "state.pkl", "checkpoint.ckpt", "model.keras"):
        (directory / name).write_bytes(target.bomb)
    codes = {verb: _hvtrain("ckpt", verb, str(directory), *more).returncode for verb, more in (
        ("verify", ()), ("digest", ()), ("export", ("--to", str(target.marker.parent / "out.safetensors"))))}
    assert codes == {"verify": 4, "digest": 4, "export": 4} and not target.marker.exists(), codes
    return "damaged, says verify; digest and export refuse; nothing was loaded. The job goes by it"


def names_in_manifest(target: Target) -> str:
    """Manifests whose digest is right and whose files lie elsewhere; and files that are links, or no files."""
    directory = target.run_dir / "checkpoints" / STEP
    outside = target.marker.parent / "outside.safetensors"
    outside.write_bytes(b"\2\0\0\0\0\0\0\0{}")
    for name in ("../../outside.safetensors", str(outside), "..", "a/b.safetensors", "model.pkl", "\x1b[2J.safetensors"):
        _forge(directory, {}, b"{}", listed=[name])
        problems = verify(directory)
        assert problems and all(problem.isprintable() for problem in problems), problems
    _forge(directory, {"model.safetensors": outside.read_bytes()}, b"{}")
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors").symlink_to(outside)
    assert verify(directory) == ["model.safetensors is a symbolic link"]
    (directory / "model.safetensors").unlink()
    os.mkfifo(directory / "model.safetensors")
    assert verify(directory) == ["model.safetensors is not a regular file"]
    return "refused before anything is opened; links and pipes are found out"


def secrets(target: Target, pids: Callable[[], dict[int, str]], token: str) -> str:
    """The token on a command line, in the environment of a worker, in a file that others can read."""
    for path in (*target.run_dir.rglob("*"), *target.run_dir.parent.glob("run.*")):
        if not path.is_file():
            continue
        text, mode = path.read_bytes(), stat.S_IMODE(path.stat().st_mode)
        assert token.encode() not in text, path
        assert target.client_token.encode() not in text or mode == 0o600, (path, oct(mode))
    looked = 0
    for pid, name in pids().items():
        assert token.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes(), name
        if pid != target.pid:  # it was given it there
            assert token.encode() not in Path(f"/proc/{pid}/environ").read_bytes(), name
            looked += 1
    return f"on no command line; in none of {looked} environments but the launcher's; control.json is 0600"


def _forge(directory: Path, tensors: dict[str, bytes], state: bytes, listed: list[str] | None = None) -> None:
    """A checkpoint whose manifest is right in every sum. ``listed``: names in it besides the files that there are."""
    directory.mkdir(parents=True, exist_ok=True)
    for path in directory.iterdir():
        path.unlink()
    files = {**tensors, "state.json": state}
    for name, content in files.items():
        (directory / name).write_bytes(content)
    entries = {name: {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
               for name, content in {**files, **{name: b"x" for name in listed or ()}}.items()}
    raw = {"schema_version": 1, "step": 99999999, "epoch": 0, "cursor": 0, "world_size": 1, "created": "2030-01-01T00:00:00Z",
           "hvtrain_version": "0", "framework": "torch", "metrics": {"accuracy": 2.0}, "files": entries}
    raw["digest"] = hashlib.sha256(json.dumps(raw, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    (directory / "manifest.json").write_text(json.dumps(raw))


LINES = {"a pickle bomb as checkpoint": pickle_as_checkpoint, "paths out of a checkpoint": names_in_manifest}
