"""Which sockets the processes of a job listen on, from /proc: nothing of the job is asked."""

from __future__ import annotations

import ipaddress
import os
import struct
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterator

_LISTEN = "0A"
_ACCEPTS = 1 << 16  # __SO_ACCEPTCON in the flags of /proc/net/unix
LOOK_SECONDS = 0.002


@dataclass(frozen=True)
class Listener:
    """A socket that strangers could reach. ``kind``: tcp, udp, raw, packet or unix; ``place``: address or path."""

    pid: int
    process: str
    kind: str
    place: str
    port: int = 0


def of(pids: dict[int, str]) -> set[Listener]:
    """Those of the processes ``pids`` (pid -> name), all of this network name space."""
    known = {inode: (kind, place, port) for inode, kind, place, port in _all()}
    found = set()
    for pid, process in pids.items() if known else ():
        for inode in _inodes(pid):
            if inode in known:
                found.add(Listener(pid, process, *known[inode]))
    return found


def _all() -> Iterator[tuple[str, str, str, int]]:
    """(inode, kind, place, port) of every socket that could be sent something by somebody it is not connected to."""
    for kind in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6"):
        for fields in _table(f"/proc/net/{kind}"):
            address, port = _end(fields[1])
            if fields[3] == _LISTEN or not kind.startswith("tcp") and int(fields[2].rpartition(":")[2], 16) == 0:
                yield fields[9], kind.rstrip("6"), address, port
    for fields in _table("/proc/net/packet"):
        yield fields[8], "packet", "any", 0
    for fields in _table("/proc/net/unix"):
        if int(fields[3], 16) & _ACCEPTS:
            yield fields[6], "unix", fields[7] if len(fields) > 7 else "", 0


def _table(path: str) -> list[list[str]]:
    try:
        return [line.split() for line in Path(path).read_text().splitlines()[1:]]
    except OSError:
        return []


def _end(text: str) -> tuple[str, int]:
    address, _, port = text.partition(":")
    words = [int(address[at:at + 8], 16) for at in range(0, len(address), 8)]  # each in the host's order of bytes
    return str(ipaddress.ip_address(struct.pack(f"={len(words)}I", *words))), int(port, 16)


def _inodes(pid: int) -> Iterator[str]:
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return
    for name in names:
        try:
            target = os.readlink(f"/proc/{pid}/fd/{name}")
        except OSError:
            continue
        if target.startswith("socket:["):
            yield target[8:-1]


def family(pid: int) -> dict[int, str]:
    """A process and all below it: pid -> name. Quicker than looking at all processes there are."""
    found: dict[int, str] = {}
    try:
        found[pid] = Path(f"/proc/{pid}/comm").read_text().strip()
        for thread in os.listdir(f"/proc/{pid}/task"):
            for child in Path(f"/proc/{pid}/task/{thread}/children").read_text().split():
                found.update(family(int(child)))
    except OSError:
        pass
    return found


class Watch:
    """Looks all the time; calls ``on_new`` with each listener, in the watching thread."""

    def __init__(self, pids: Callable[[], dict[int, str]], on_new: Callable[[Listener], None]):
        self._pids, self._on_new = pids, on_new
        self.seen: set[Listener] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._over.is_set():
            for listener in of(self._pids()) - self.seen:
                self.seen.add(listener)
                self._on_new(listener)
            self._over.wait(LOOK_SECONDS)
