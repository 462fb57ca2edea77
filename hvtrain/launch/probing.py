"""Finding out which addresses of one host others really reach: by connecting.

::

    listener on each address: --nonce--> whoever connects

Who does not read the nonce has reached another machine: many have the same address on a bridge of their own (172.17.0.1).
"""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
from dataclasses import dataclass
from typing import Iterable, Sequence

REACH_SECONDS = 4.0
"""How long a connection to an address may take."""

NONCE_BYTES = 16

NEIGHBOURS = 8
"""Each host must reach so many others; with more hosts that is not tried out for every pair."""


@dataclass(frozen=True)
class Target:
    """Where to connect to, and what is to be read there; an empty ``nonce``: nothing."""

    address: str
    port: int
    nonce: str = ""

    def packed(self) -> list[str | int]:
        """As messages carry it: ``Target(*packed)``."""
        return [self.address, self.port, self.nonce]


class Listener:
    """Listens on addresses of this host, until it is closed."""

    def __init__(self) -> None:
        self._servers: list[asyncio.AbstractServer] = []
        self._nonce = secrets.token_hex(NONCE_BYTES)

    async def open(self, addresses: Iterable[str]) -> list[Target]:
        """The targets; addresses on which this host cannot listen are left out."""
        found = []
        for address in addresses:
            try:
                server = await asyncio.start_server(self._greet, address, 0)
            except OSError:
                continue
            self._servers.append(server)
            found.append(Target(address, server.sockets[0].getsockname()[1], self._nonce))
        return found

    def close(self) -> None:
        for server in self._servers:
            server.close()

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(self._nonce.encode())
        writer.close()


async def reach(targets: Sequence[Target]) -> list[str | None]:
    """For each target the address of this host by which it was reached; None where it was not."""
    return list(await asyncio.gather(*map(_reach, targets)))


async def _reach(target: Target) -> str | None:
    try:
        return await asyncio.wait_for(_connect(target), REACH_SECONDS)
    except (OSError, asyncio.TimeoutError, asyncio.IncompleteReadError):
        return None


async def _connect(target: Target) -> str | None:
    reader, writer = await asyncio.open_connection(target.address, target.port)
    try:
        own = writer.get_extra_info("sockname")[0]
        if target.nonce and await reader.readexactly(len(target.nonce)) != target.nonce.encode():
            return None
        return own
    finally:
        writer.close()


def candidates(addresses: dict[str, list[str]], interface: str | None = None) -> list[tuple[str, str]]:
    """(interface, address) pairs by which another machine could reach the one with these ``addresses``, IPv4 first; those
    of ``interface`` alone if one is given."""
    pairs = [(name, address) for name, there in sorted(addresses.items()) for address in there
             if interface in (None, name) and not _is_inner(address)]
    return sorted(pairs, key=lambda pair: ipaddress.ip_address(pair[1]).version)


def _is_inner(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    return parsed.is_loopback or parsed.is_link_local or parsed.is_unspecified
