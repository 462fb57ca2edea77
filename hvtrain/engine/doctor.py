"""Can training work here? A list of checks, each with its finding and, where it is bad, what mends it.

Reading the machine and judging it are apart: ``diagnose`` is pure and takes what was read as values.
"""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Callable, Sequence

from hvtrain.engine.cache import cache_directory
from hvtrain.engine.info import EngineInfo, engine_info
from hvtrain.engine.machine import Machine, existing_parent, gib, read_machine
from hvtrain.engine.toolchain import Missing, missing_tools

_GIB = 1 << 30


class Status(str, Enum):
    """``FAIL``: training cannot work. ``WARN``: it can, but something is worth knowing."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Check:
    """One finding. ``remedy`` is what to type or do, empty where nothing needs to be done."""

    name: str
    status: Status
    message: str
    remedy: str = ""


@dataclass(frozen=True)
class Facts:
    """Everything the judgement rests on. ``open_files`` is the limit per process, 0 if unknown."""

    python: tuple[int, int]
    engine: EngineInfo
    machine: Machine
    missing: tuple[Missing, ...]
    hostname_resolves: bool
    open_files: int
    cache: str
    cache_writable: bool


def run_doctor(directory: str | os.PathLike[str] = ".") -> tuple[list[Check], Facts]:
    """Look at this machine; ``directory`` is where checkpoints would go. Takes about a second, changes nothing."""
    facts = read_facts(directory)
    return diagnose(facts), facts


def read_facts(directory: str | os.PathLike[str]) -> Facts:
    """Read everything that the checks look at."""
    cache = cache_directory()
    return Facts(
        python=(sys.version_info[0], sys.version_info[1]), engine=engine_info(), machine=read_machine(directory),
        missing=tuple(missing_tools()), hostname_resolves=_resolves(socket.gethostname()),
        open_files=_open_files(), cache=str(cache), cache_writable=os.access(existing_parent(Path(cache)), os.W_OK))


def diagnose(facts: Facts) -> list[Check]:
    """Judge: one Check per subject, in the order in which they should be mended."""
    checks: Sequence[Callable[[Facts], Check]] = (
        _python, _frameworks, _engine, _compiling, _gpus, _cores, _memory, _network, _disk, _files, _cache)
    return [check(facts) for check in checks]


def can_train(checks: Sequence[Check]) -> bool:
    """False if any check failed."""
    return all(check.status is not Status.FAIL for check in checks)


def to_json(checks: Sequence[Check], facts: Facts) -> dict:
    """JSON-able form: the checks, and what was read."""
    return {"can_train": can_train(checks),
            "checks": [{**asdict(check), "status": check.status.value} for check in checks],
            "engine": facts.engine.to_json(), "machine": asdict(facts.machine)}


def _python(facts: Facts) -> Check:
    text = "Python " + ".".join(map(str, facts.python))
    if facts.python < (3, 10):
        return Check("python", Status.FAIL, f"{text} is too old, 3.10 is needed.",
                     "make a virtual environment with a newer python3")
    return Check("python", Status.OK, text)


def _frameworks(facts: Facts) -> Check:
    present = facts.engine.present
    if not present:
        return Check("frameworks", Status.FAIL, "Neither PyTorch nor TensorFlow is installed.",
                     "pip install torch   or   pip install tensorflow")
    return Check("frameworks", Status.OK, ", ".join(f"{name} {version}" for name, version in present.items()))


def _engine(facts: Facts) -> Check:
    info = facts.engine
    if info.matches:
        return Check("engine", Status.OK, f"Horovod {info.version} for {', '.join(info.usable)}; "
                                          f"edits: {', '.join(info.edits)}")
    # An engine that fits one of two frameworks, or has older edits, still trains with that one.
    status = Status.WARN if info.ours and info.usable else Status.FAIL
    return Check("engine", status, " ".join(info.problems), info.remedy)


def _compiling(facts: Facts) -> Check:
    if not facts.missing:
        return Check("compiler", Status.OK, "The engine can be compiled here.")
    status = Status.WARN if facts.engine.usable else Status.FAIL
    packages = " ".join(item.package for item in facts.missing)
    return Check("compiler", status, " ".join(f"{item.what}." for item in facts.missing),
                 f"apt-get install {packages}")


def _gpus(facts: Facts) -> Check:
    if not facts.machine.gpus:
        return Check("gpus", Status.OK, "None; training uses the CPU.")
    names = "; ".join(facts.machine.gpus)
    if facts.engine.installed and not any(key.startswith("HOROVOD_GPU_") for key in facts.engine.variables):
        return Check("gpus", Status.WARN, f"{names}; but the engine was built without GPU collectives.",
                     "install NCCL's headers and the CUDA toolkit, then: hvtrain engine build --force")
    return Check("gpus", Status.OK, names)


def _cores(facts: Facts) -> Check:
    return Check("cores", Status.OK, f"{facts.machine.cores} usable")


def _memory(facts: Facts) -> Check:
    text = f"{gib(facts.machine.memory_free)} free of {gib(facts.machine.memory_total)}"
    if facts.machine.memory_free < _GIB:
        return Check("memory", Status.WARN, f"{text}; a worker takes about 0.5 GiB before its model.",
                     "stop other programs, or start fewer workers: -np")
    return Check("memory", Status.OK, text)


def _network(facts: Facts) -> Check:
    interfaces = facts.machine.interfaces
    text = ", ".join(f"{interface.name} {interface.address}" for interface in interfaces)
    if not interfaces:
        return Check("network", Status.FAIL, "No network interface is up, not even loopback.",
                     "ip link set lo up")
    if not facts.hostname_resolves:
        return Check("network", Status.WARN,
                     f"{text}; the name of this host, {facts.machine.hostname}, does not resolve, so several hosts "
                     f"need launch.interface.", f"add {facts.machine.hostname} to /etc/hosts")
    return Check("network", Status.OK, text)


def _disk(facts: Facts) -> Check:
    free, path = facts.machine.disk_free, facts.machine.disk_path
    text = f"{gib(free)} free in {path} for checkpoints"
    if not os.access(path, os.W_OK):
        return Check("disk", Status.FAIL, f"{path} cannot be written.", "set run.dir to a directory you can write to")
    if free < _GIB // 16:
        return Check("disk", Status.FAIL, f"Only {text}.", "free some space, or set run.dir to another disk")
    if free < _GIB:
        return Check("disk", Status.WARN, f"Only {text}.", "free some space, or set run.dir to another disk")
    return Check("disk", Status.OK, text)


def _files(facts: Facts) -> Check:
    if 0 < facts.open_files < 1024:
        return Check("open files", Status.WARN, f"A process may open only {facts.open_files} files; "
                     f"a rank needs a few per other rank.", "ulimit -n 4096")
    return Check("open files", Status.OK, str(facts.open_files or "no limit known"))


def _cache(facts: Facts) -> Check:
    if facts.cache_writable:
        return Check("cache", Status.OK, facts.cache)
    status = Status.WARN if facts.engine.usable else Status.FAIL
    return Check("cache", status, f"{facts.cache} cannot be written; engines are kept there.",
                 "export HVTRAIN_CACHE=DIRECTORY")


def _resolves(name: str) -> bool:
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        return False
    return True


def _open_files() -> int:
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 0 if limit == resource.RLIM_INFINITY else limit
