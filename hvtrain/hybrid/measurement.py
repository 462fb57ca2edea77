"""A measurement of a job's model as it is kept with the run: RUN/profile.json.

It is used again as long as it would come out the same: for the same task with the same arguments, batch and optimizer, on
the same kind of machine with the same versions, and as long as the files that the task was made from have not changed; and
as long as what is to be predicted lies near what was measured. Where it does not, the next measurement covers both::

    hvtrain run -np 16    1 4         samples a micro-batch, 1 thread
    hvtrain plan          1 4 16 64   for one worker with all 16 threads; serves both
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Mapping

from pydantic import TypeAdapter, ValidationError

import hvtrain
from hvtrain.config import Job
from hvtrain.hybrid.costs import ModelCosts
from hvtrain.hybrid.speeds import Speeds

FILE_NAME = "profile.json"

NEAR = 4
"""Beyond the fewest and the most samples that were measured, by what factor times are still told from them."""

_PACKAGES = {"torch": ("torch",), "keras": ("keras", "tensorflow", "tensorflow-cpu")}
"""By framework; those that are not installed do not count."""


@dataclass(frozen=True)
class Measurement:
    """What was found on the machine that measured.

    Attributes:
        speeds: what the model's layers take, by samples, threads, and how many compute at once.
        gpus: GPUs that the framework has; 0 where it computes on the processor.
        memory: bytes of the smallest of them; None without any.
        key: of the job and the machine (:func:`key`).
        code: SHA-256 of the task's files, by absolute path.
        whole: why the model cannot be cut, where it was measured as one layer.
        sizes: samples of the micro-batches that were asked for, ascending; memory and time may not have allowed all.
        threads: most that it was to be measured with.
    """

    speeds: Speeds
    gpus: int = 0
    memory: int | None = None
    key: str = ""
    code: Mapping[str, str] = field(default_factory=dict)
    whole: str = ""
    sizes: tuple[int, ...] = ()
    threads: int = 1

    @property
    def costs(self) -> ModelCosts:
        """Of the largest micro-batch that was measured: the model's layers and sizes."""
        return self.speeds.largest

    def is_of(self, job: Job, hardware: str) -> bool:
        """Whether ``job`` would be measured alike on such ``hardware``, with the code as it is now."""
        return self.key == key(job, hardware) and all(digest(path) == known for path, known in self.code.items())

    def serves(self, sizes: tuple[int, ...], threads: int) -> bool:
        """Whether it tells what micro-batches of ``sizes`` (ascending) take, with up to so many threads on the processor."""
        near = bool(self.sizes) and self.sizes[0] <= NEAR * sizes[0] and sizes[-1] <= NEAR * self.sizes[-1]
        return near and (self.gpus > 0 or threads <= self.threads)

    def to_json(self) -> str:
        """As text; :meth:`from_json` reads it."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Measurement:
        """Raises ValueError for what is none."""
        try:
            return TypeAdapter(cls).validate_json(text)
        except ValidationError as error:
            raise ValueError(f"no measurement of a model: {error}") from None


def key(job: Job, hardware: str) -> str:
    """Equal for jobs that are measured alike; ``hardware`` describes the machine."""
    values = job.model_dump(mode="json")
    parts = {"hardware": hardware, "framework": job.framework, "task": values["task"], "global_batch": job.data.global_batch,
             "precision": job.train.precision, "optim": {name: values["optim"][name] for name in ("name", "args", "groups")},
             "devices": job.hybrid.devices if job.hybrid is not None else "auto", "ema": job.train.ema is not None,
             "software": software(job.framework)}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def software(framework: str) -> list[str]:
    """Versions of what cuts and computes a model: with others it may have other layers."""
    found = [f"hvtrain {hvtrain.__version__}"]
    for name in _PACKAGES.get(framework, ()):
        with suppress(metadata.PackageNotFoundError):
            found.append(f"{name} {metadata.version(name)}")
    return found


def digest(path: str | Path) -> str:
    """SHA-256 of a file; empty if it cannot be read, or is none (a device, which may never end)."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest() if Path(path).is_file() else ""
    except OSError:
        return ""


def kept(run_dir: str | Path, job: Job, hardware: str) -> Measurement | None:
    """The run's measurement, if it has one that is of ``job`` on such ``hardware``."""
    try:
        found = Measurement.from_json((Path(run_dir) / FILE_NAME).read_text())
    except (OSError, ValueError):
        return None
    return found if found.is_of(job, hardware) else None
