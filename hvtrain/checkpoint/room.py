"""How much memory can still be had, so that asking for more is an error instead of a visit by the OOM killer.

The kernel refuses hardly any allocation: a memory cgroup or a host that runs full kills a process instead. Whoever is
about to take much at once has to look first.
"""

from __future__ import annotations

from pathlib import Path

from hvtrain import cgroups


def available(root: Path = Path("/")) -> int:
    """Bytes that this process may still use without swapping: the least of what the host and its cgroups have left.

    Page cache that the kernel can drop counts as free. Without /proc (not Linux) there is no limit to see: 2**63.
    """
    return max(0, min(_of_host(root), cgroups.memory_left(root)))


def _of_host(root: Path) -> int:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return cgroups.UNLIMITED
