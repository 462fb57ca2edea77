"""Which network interface a job uses, and the address on it."""

from __future__ import annotations

import ipaddress
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


def outward() -> str:
    """The interface by which others most likely reach this host: that of the default route, else the first with an address
    that is not the loopback one; that if there is no other."""
    found = addresses()
    for family, somewhere in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):  # for documentation: nobody's
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((somewhere, 9))  # sends nothing: the kernel chooses the way
                mine = probe.getsockname()[0].split("%")[0]
        except OSError:
            continue
        for name, there in found.items():
            if mine in there:
                return name
    inner = loopback()
    return next((name for name, there in found.items() if name != inner and any(not _is_local(one) for one in there)), inner)


def _is_local(address: str) -> bool:
    """Whether it is an IPv6 address that is of use on its own link only."""
    return address.lower().startswith("fe80:")


def own(host: str) -> tuple[str, str]:
    """The interface and the address by which this host is called ``host``.

    Raises:
        EnvironmentNotReady: it is not this host's name or address, or nobody's.
    """
    try:
        meant = {entry[4][0].split("%")[0] for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError as error:
        raise EnvironmentNotReady(f"the host {host!r} cannot be found: {error.strerror}.") from None
    found = addresses()
    for name, there in found.items():
        for address in there:
            if address in meant:
                return name, address
    if all(ipaddress.ip_address(address).is_loopback for address in meant):  # Debian: 127.0.1.1 is the host's own name
        name = outward()
        return name, address_of(name)
    have = ", ".join(address for name in found for address in found[name])
    raise EnvironmentNotReady(f"{host} ({', '.join(sorted(meant))}) is not this host, {socket.gethostname()}, which has "
                              f"{have}.")


def loopback() -> str:
    """The name of the loopback interface."""
    for name, there in addresses().items():
        if "127.0.0.1" in there or "::1" in there:
            return name
    return LOOPBACK
