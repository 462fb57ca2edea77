"""Two network namespaces joined by a cable of a given rate: two hosts, as far as the network goes, on one machine.

::

    namespace hvtrain-PID-x-0                     namespace hvtrain-PID-x-1
    processes - veth0 10.0.0.1 ===== cable ===== 10.0.0.2 veth0 - processes
                 tbf rate 1gbit ->          <- tbf rate 1gbit

Nothing outside of the namespaces is changed, and they have no way out.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any, Sequence

INTERFACE = "veth0"
"""The end of the cable in either namespace."""

ADDRESSES = ("10.0.0.1", "10.0.0.2")

ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class NoCable(RuntimeError):
    """The namespaces could not be made; the message carries the command and what it said."""


def obstacle() -> str | None:
    """Why a cable cannot be laid here, or None."""
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    if missing:
        return f"{' and '.join(missing)} not found: install iproute2 (apt-get install iproute2)"
    if os.geteuid() != 0:
        return "network namespaces need root: start this with sudo"
    return None


class Cable:
    """The two namespaces, for a ``with``; they, and whatever runs in them, are gone afterwards.

    ``rate``, ``burst`` and ``latency`` are those of ``tc ... tbf``, on both ends. A burst below 64 kB would have the
    kernel cut its large segments up, which costs processor time that a real network card would not.
    """

    def __init__(self, rate: str = "1gbit", burst: str = "256kb", latency: str = "50ms"):
        self._shape = ["rate", rate, "burst", burst, "latency", latency]
        mark = f"hvtrain-{os.getpid()}-{secrets.token_hex(2)}"
        self.names = (f"{mark}-0", f"{mark}-1")

    def __enter__(self) -> Cable:
        try:
            for name in self.names:
                _do("ip", "netns", "add", name)
            # made inside the namespaces at once: their names cannot clash with an interface of the machine
            _do("ip", "link", "add", INTERFACE, "netns", self.names[0], "type", "veth",
                "peer", "name", INTERFACE, "netns", self.names[1])
            for name, address in zip(self.names, ADDRESSES):
                _do("ip", "-n", name, "address", "add", f"{address}/24", "dev", INTERFACE)
                _do("ip", "-n", name, "link", "set", "lo", "up")
                _do("ip", "-n", name, "link", "set", INTERFACE, "up")
                _do("tc", "-n", name, "qdisc", "add", "dev", INTERFACE, "root", "tbf", *self._shape)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        former = {each: signal.signal(each, signal.SIG_IGN) for each in ENDINGS}  # such as a second Ctrl-C
        try:
            existing = [name for name in self.names if name in _names()]
            for name in existing:
                for pid in _do("ip", "netns", "pids", name).split():
                    _kill(int(pid))
            for name in existing:
                _do("ip", "netns", "delete", name)
        finally:
            for each, handler in former.items():
                signal.signal(each, handler)

    def inside(self, end: int, command: Sequence[str]) -> list[str]:
        """The command that runs ``command`` in namespace ``end``, in the same process."""
        return ["ip", "netns", "exec", self.names[end], *command]


def crossed(interface: str = INTERFACE) -> tuple[int, int]:
    """Bytes that this namespace's end of the cable has sent and received so far."""
    counters = Path("/sys/class/net", interface, "statistics")
    return int((counters / "tx_bytes").read_text()), int((counters / "rx_bytes").read_text())


def _names() -> set[str]:
    return {line.split()[0] for line in _do("ip", "netns", "list").splitlines()}


def _do(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=20,
                          start_new_session=True)  # out of the reach of Ctrl-C, which would break it off half done
    if done.returncode != 0:
        raise NoCable(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
