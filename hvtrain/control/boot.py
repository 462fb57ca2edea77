"""What a worker must know before it can reach the coordinator. Travels over pipes, never a command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hvtrain.config import Job
from hvtrain.config.loading import Given
from hvtrain.control.client import Address


@dataclass(frozen=True)
class Boot:
    """``module_dir`` is put on the import path first: user code may live beside the job file.

    ``threads`` is the number of CPU threads each worker computes with; ``start`` counts the starts of the run.
    ``snapshots`` are the descriptors of the host's shared memory (:mod:`hvtrain.checkpoint.memory`), which the agent
    adds. ``faults`` is a fault plan, None in every serious run. ``given`` is what a script's job was told explicitly.
    """

    job: Job
    coordinator: Address
    module_dir: str
    run_dir: str
    threads: int
    start: int = 1
    snapshots: tuple[int, ...] = ()
    faults: dict[str, Any] | None = None
    given: Given = field(default_factory=Given)

    def to_json(self) -> dict[str, Any]:
        address = self.coordinator
        return {"job": self.job.model_dump(mode="json"), "module_dir": self.module_dir, "run_dir": self.run_dir,
                "threads": self.threads, "start": self.start, "snapshots": list(self.snapshots), "faults": self.faults,
                "given": {"all": self.given.all, "over": self.given.over},
                "coordinator": {"host": address.host, "port": address.port, "token": address.token,
                                "tls": address.tls}}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Boot:
        return cls(job=Job.model_validate(data["job"]), coordinator=Address(**data["coordinator"]),
                   module_dir=data["module_dir"], run_dir=data["run_dir"], threads=data["threads"],
                   start=data["start"], snapshots=tuple(data["snapshots"]), faults=data["faults"],
                   given=Given(**data["given"]))
