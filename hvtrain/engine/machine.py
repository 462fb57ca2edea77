"""What this machine has: cores, memory, network interfaces, GPUs, disk. Asked without any framework."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from hvtrain import cgroups

_GIB = 1 << 30


@dataclass(frozen=True)
class Interface:
    """A network interface that is up, with its first address (IPv4 if it has one)."""

    name: str
    address: str


@dataclass(frozen=True)
class Machine:
    """A reading. Memory and disk are in bytes; ``cores`` and ``memory_free`` respect cgroup limits."""

    hostname: str
    cores: int
    memory_total: int
    memory_free: int
    interfaces: tuple[Interface, ...]
    gpus: tuple[str, ...]
    disk_path: str
    disk_free: int


def read_machine(disk_path: str | os.PathLike[str] = ".") -> Machine:
    """Read what this machine has; the disk is the one that holds, or will hold, ``disk_path``."""
    import psutil

    memory = psutil.virtual_memory()
    path = existing_parent(Path(disk_path))
    return Machine(
        hostname=socket.gethostname(), cores=cores(), memory_total=memory.total, memory_free=memory_free(),
        interfaces=interfaces(), gpus=gpus(), disk_path=str(path), disk_free=shutil.disk_usage(path).free)


def cores(root: Path = Path("/")) -> int:
    """Processor cores that this process may use: affinity, and whole ones of its cgroups' quota if there is one. At least
    1."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        count = os.cpu_count() or 1
    quota = cgroups.processors(root)
    # Threads beyond the quota would be halted together with all others in each period.
    return max(1, count if quota is None else min(count, int(quota)))


def memory_free(root: Path = Path("/")) -> int:
    """Bytes of memory that can be had without swapping, within the cgroups' limits if there are any."""
    import psutil

    return max(0, min(psutil.virtual_memory().available, cgroups.memory_left(root)))


def interfaces() -> tuple[Interface, ...]:
    """The interfaces that are up and have an address."""
    import psutil

    up = {name for name, stats in psutil.net_if_stats().items() if stats.isup}
    found = []
    for name, addresses in sorted(psutil.net_if_addrs().items()):
        for family in (socket.AF_INET, socket.AF_INET6):
            address = next((a.address for a in addresses if a.family == family), None)
            if name in up and address:
                found.append(Interface(name, address))
                break
    return tuple(found)


def gpus() -> tuple[str, ...]:
    """The NVIDIA GPUs by name, as ``nvidia-smi`` lists them; none if it is not there or does not answer."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return ()
    try:
        done = subprocess.run([command, "--query-gpu=name,memory.total", "--format=csv,noheader"],
                              capture_output=True, text=True, timeout=15)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return tuple(line.strip() for line in done.stdout.splitlines() if line.strip()) if done.returncode == 0 else ()


def existing_parent(path: Path) -> Path:
    """The deepest existing directory of ``path`` itself and its parents."""
    path = path.absolute()
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return path


def gib(count: int) -> str:
    """Bytes as text in GiB."""
    return f"{count / _GIB:.1f} GiB"
