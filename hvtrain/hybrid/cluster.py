"""The machines that a plan is for: nodes, their devices, and how fast these compute and talk to each other."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hvtrain.errors import UsageError

NETWORK = 1.25e9
"""Bytes per second of a node's network where nothing is said: 10 Gbit/s."""

LINK = 4e9
"""Bytes per second at which workers of a processor exchange gradients where nothing is said. Two that add 100 MB up through
shared memory take 26 ms on two cores of an AMD EPYC (benchmarks/README.md): 3.8 GB/s."""

BUS = 16e9
"""Bytes per second between devices of their own where nothing is said: about what PCI Express 4.0 with 16 lanes gives."""

LATENCY = 1.3e-3
"""Seconds that the last reduction of a step takes at least: the engine's cycle and waking threads (benchmarks/README.md, two
ranks, 0.1 MB)."""

_RATE = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([kKmMgGtT]?)(bit|bps|B|Bps)(?:/s)?\s*")
_POWERS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


@dataclass(frozen=True)
class Cluster:
    """``nodes`` with ``devices`` each, all alike.

    Args:
        memory: bytes of a device, None for no limit.
        network: bytes per second that a node sends, and receives at the same time.
        link: bytes per second between the devices of a node.
        latency: seconds that a reduction takes at least.
        cores: of a node, where its devices are threads of the processor; None for devices of their own, such as GPUs.
        most_threads: that the stages of one replica share at most, on the processor; None for what the cores allow.
        speed: how many times as fast as the measured one a device is.
    """

    nodes: int = 1
    devices: int = 1
    memory: int | None = None
    network: float = NETWORK
    link: float = LINK
    latency: float = LATENCY
    cores: int | None = None
    most_threads: int | None = None
    speed: float = 1.0

    def threads(self, replicas: int, stages: int) -> int:
        """Threads that each stage has with so many ``replicas`` on a node; 1 where a device is no thread of the
        processor."""
        if self.cores is None:
            return 1
        share = self.cores // replicas
        return max(1, (share if self.most_threads is None else min(share, self.most_threads)) // stages)


def bytes_per_second(text: str) -> float:
    """From ``"100Gbit"``, ``"10Gbit/s"`` or ``"12.5GB"``. Raises UsageError for anything else."""
    match = _RATE.fullmatch(text)
    if match is None or not float(match[1]):
        raise UsageError(f'a bandwidth is written as bits or bytes per second, such as "100Gbit" or "12.5GB"; got {text!r}')
    return float(match[1]) * _POWERS[match[2].lower()] / (1 if match[3].startswith("B") else 8)
