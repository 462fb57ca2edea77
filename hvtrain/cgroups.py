"""What this process's control groups leave it of the machine: those of a container, a batch system, a service.

::

    /proc/self/cgroup      4:memory:/job/step          the kernel's names; "0::/job/step" in version 2
    /sys/fs/cgroup/memory/job/step/memory.limit_in_bytes
    /sys/fs/cgroup/memory/job/memory.limit_in_bytes           each of them limits, also those above

In a container the path may be the host's: then only the base directory is there, and is the container's.
"""

from __future__ import annotations

from pathlib import Path

UNLIMITED = 2**63
"""No limit on memory, in bytes."""


def memory_left(root: Path = Path("/")) -> int:
    """Bytes that the groups still let this process use; page cache that can be dropped counts as free."""
    return min((_memory(path, version) for path, version in _groups("memory", root)), default=UNLIMITED)


def processors(root: Path = Path("/")) -> float | None:
    """Processors' worth of time that the groups give (`docker run --cpus 1.5`: 1.5); None: no limit."""
    shares = [_share(path, version) for path, version in _groups("cpu", root)]
    return min((share for share in shares if share is not None), default=None)


def _groups(controller: str, root: Path) -> list[tuple[Path, int]]:
    """This process's groups of a controller and all above them, each with the version of its files."""
    found = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller in controllers.split(","):
            bases, version = [root / "sys/fs/cgroup" / name for name in (controller, controllers)], 1
        elif number == "0":
            bases, version = [root / "sys/fs/cgroup"], 2
        else:
            continue
        for base in dict.fromkeys(bases):  # "cpu,cpuacct" may be mounted under either name
            own = base / path.strip("/")
            found += [(place, version) for place in (own, *own.parents) if place == base or base in place.parents]
    return found


_MEMORY = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
           2: ("memory.max", "memory.current", "inactive_file")}


def _memory(path: Path, version: int) -> int:
    limit_file, usage_file, cache_key = _MEMORY[version]
    try:
        limit, usage = int(_read(path / limit_file)), int(_read(path / usage_file))
    except ValueError:  # "max", or no such file: no limit here
        return UNLIMITED
    cache = 0
    for line in _read(path / "memory.stat").splitlines():
        key, _, value = line.partition(" ")
        if key == cache_key:
            cache = int(value)
    return limit - max(0, usage - cache)


def _share(path: Path, version: int) -> float | None:
    try:
        if version == 2:
            quota, period = map(int, _read(path / "cpu.max").split())
        else:
            quota, period = (int(_read(path / f"cpu.cfs_{name}_us")) for name in ("quota", "period"))
    except ValueError:  # "max 100000", or no such file
        return None
    return quota / period if quota > 0 and period > 0 else None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
