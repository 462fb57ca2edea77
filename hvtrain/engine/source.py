"""Gets Horovod's source release with pip, so that the user's index and proxy settings hold, and checks its hash."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from hvtrain.engine.recipe import HOROVOD_SHA256, HOROVOD_VERSION
from hvtrain.errors import EngineBuildError

_NAME = f"horovod-{HOROVOD_VERSION}.tar.gz"


def fetch_source(directory: Path) -> Path:
    """The source archive in ``directory``, fetched if it is not there yet or damaged. Raises EngineBuildError."""
    archive = directory / _NAME
    if archive.exists() and _sha256(archive) == HOROVOD_SHA256:
        return archive
    with tempfile.TemporaryDirectory(dir=directory, prefix="fetch-") as scratch:
        wanted = Path(scratch) / "wanted.txt"
        wanted.write_text(f"horovod=={HOROVOD_VERSION} --hash=sha256:{HOROVOD_SHA256}\n", encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "horovod",
             "--no-build-isolation", "--require-hashes", "--dest", scratch, "--requirement", str(wanted)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        fetched = Path(scratch) / _NAME
        if done.returncode != 0 or not fetched.exists():
            tail = "\n".join(done.stdout.strip().splitlines()[-8:])
            raise EngineBuildError(f"pip could not download the source of Horovod {HOROVOD_VERSION}:\n{tail}\n"
                                   f"Check pip's index and proxy settings, or put the file {_NAME} "
                                   f"into {directory}.")
        if _sha256(fetched) != HOROVOD_SHA256:  # pip has checked it; this also covers a strange pip
            raise EngineBuildError(f"{_NAME} does not have the expected sha256 {HOROVOD_SHA256}.")
        os.replace(fetched, archive)
    return archive


def unpack(archive: Path, directory: Path) -> Path:
    """Unpack the (hash-checked) archive below ``directory`` and return the source tree."""
    with tarfile.open(archive) as tar:
        if hasattr(tarfile, "data_filter"):  # Python >= 3.12 and security releases
            tar.extractall(directory, filter="data")
        else:
            tar.extractall(directory)
    return directory / _NAME[:-len(".tar.gz")]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
