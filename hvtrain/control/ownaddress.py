"""Which interface of this host a worker's connections to the others use: each host's own, whatever it is called there.

What reaches the coordinator reaches the other hosts, so it is the interface that has the local address of the
connection to the coordinator. ``launch.interface`` names another one, which all hosts then must have.
"""

from __future__ import annotations

import ipaddress
import socket

import psutil

from hvtrain.errors import EnvironmentNotReady


def place_on(override: str, local: str) -> tuple[str, str]:
    """The interface's name, and the address on it that the others are to connect to.

    Args:
        override: ``launch.interface``; "" for none.
        local: this end's address of the connection to the coordinator.

    Raises:
        EnvironmentNotReady: there is no such interface here, or it has no address of the kind of ``local``.
    """
    found = addresses()
    if not override:
        name = next((name for name, there in found.items() if local in there), "")
        return name, local if name else ""
    wanted = _version(local)
    usable = [address for address in found.get(override, []) if _version(address) == wanted]
    if not usable:
        named = ", ".join(f"{name} ({' '.join(there)})" for name, there in sorted(found.items()))
        raise EnvironmentNotReady(f"launch.interface is {override!r}, but on {socket.gethostname()} it is not there, "
                                  f"or down, or has no IPv{wanted} address, as the coordinator has. There: {named}.")
    return override, usable[0]


def addresses() -> dict[str, list[str]]:
    """The addresses of the interfaces that are up, without those that hold on one link only."""
    up = {name for name, stats in psutil.net_if_stats().items() if stats.isup}
    return {name: [entry.address for entry in entries
                   if entry.family in (socket.AF_INET, socket.AF_INET6) and "%" not in entry.address
                   and not ipaddress.ip_address(entry.address).is_link_local]
            for name, entries in psutil.net_if_addrs().items() if name in up}


def _version(address: str) -> int:
    return 6 if ":" in address else 4
