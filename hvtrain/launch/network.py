"""Which network interface a job uses, and the address on it."""

from __future__ import annotations

import socket

from hvtrain.errors import EnvironmentNotReady

LOOPBACK = "lo"


def addresses() -> dict[str, list[str]]:
    """IPv4 and IPv6 addresses of this host's interfaces that are up, IPv4 first."""
    import psutil

    up = {name for name, stats in psutil.net_if_stats().items() if stats.isup}
    found: dict[str, list[str]] = {}
    for name, entries in psutil.net_if_addrs().items():
        if name in up:
            ordered = sorted((e for e in entries if e.family in (socket.AF_INET, socket.AF_INET6)),
                             key=lambda entry: entry.family != socket.AF_INET)
            found[name] = [entry.address.split("%")[0] for entry in ordered]
    return found


def address_of(interface: str) -> str:
    """The first address of ``interface``.

    Raises:
        EnvironmentNotReady: there is no such interface, or it is down or without an address.
    """
    found = addresses()
    if not found.get(interface):
        usable = ", ".join(name for name, there in sorted(found.items()) if there)
        raise EnvironmentNotReady(f"the network interface {interface!r} is not there, or down, or has no address. This "
                                  f"host has: {usable}. Choose one with launch.interface=NAME.")
    return found[interface][0]


def loopback() -> str:
    """The name of the loopback interface."""
    for name, there in addresses().items():
        if "127.0.0.1" in there or "::1" in there:
            return name
    return LOOPBACK
