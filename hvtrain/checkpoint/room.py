"""How much memory can still be had, so that asking for more is an error instead of a visit by the OOM killer.

The kernel refuses hardly any allocation: a memory cgroup or a host that runs full kills a process instead. Whoever is
about to take much at once has to look first.
"""

from __future__ import annotations

from pathlib import Path


def available(root: Path = Path("/")) -> int:
    """Bytes that this process may still use without swapping: the least of what the host and its cgroups have left.

    Page cache that the kernel can drop counts as free. Without /proc (not Linux) there is no limit to see: 2**63.
    """
    left = [_of_host(root), *(_of_cgroup(path, *files) for path, files in _cgroups(root))]
    return max(0, min(left))


def _of_host(root: Path) -> int:
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 2**63


_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = ("memory.max", "memory.current", "inactive_file")


def _cgroups(root: Path) -> list[tuple[Path, tuple[str, str, str]]]:
    """The memory cgroups of this process and all above them (each limits), as (directory, names of its files)."""
    found = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if "memory" in controllers.split(","):
            base, files = root / "sys/fs/cgroup/memory", _V1
        elif number == "0":
            base, files = root / "sys/fs/cgroup", _V2
        else:
            continue
        # In a container the path may be the host's: then only the base itself is there, and is the container's.
        own = base / path.strip("/")
        found += [(place, files) for place in (own, *own.parents) if place == base or base in place.parents]
    return found


def _of_cgroup(path: Path, limit_file: str, usage_file: str, cache_key: str) -> int:
    try:
        limit, usage = int(_read(path / limit_file)), int(_read(path / usage_file))
    except ValueError:  # "max", or no such file: no limit here
        return 2**63
    cache = 0
    for line in _read(path / "memory.stat").splitlines():
        key, _, value = line.partition(" ")
        if key == cache_key:
            cache = int(value)
    return limit - max(0, usage - cache)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
