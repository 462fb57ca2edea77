"""At most one agent of a job on a host: who starts it holds a socket of the job's name, and is spoken to there.

A host that was cut off may still have its agent when it is reached again; it is gone on with, or ended, never doubled.
The socket's name (abstract: it is gone with its process) is a digest of the job's token, which other users cannot guess.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import socket
import struct
from typing import Awaitable, Callable

END_SECONDS = 5.0
"""How long a former agent may take to go when it is told to; then its keeper is killed, and it ends with him."""

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def name_of(token: str) -> str:
    """The socket's name for a job, given its token."""
    return hashlib.sha256(f"hvtrain host|{token}".encode()).hexdigest()


async def claim(name: str, serve: Serve) -> asyncio.AbstractServer | None:
    """Hold the name, and serve this user's processes that ask there; None if another process holds it."""
    async def same_user(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if _peer(writer.get_extra_info("socket"))[1] == os.getuid():
            await serve(reader, writer)
        writer.close()

    try:
        return await asyncio.start_unix_server(same_user, _path(name))
    except OSError:
        return None


async def connect(name: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
    """A connection to who holds the name; None if nobody of this user's does."""
    try:
        reader, writer = await asyncio.open_unix_connection(_path(name))
    except OSError:
        return None
    if _peer(writer.get_extra_info("socket"))[1] != os.getuid():
        writer.close()
        return None
    return reader, writer


async def end(name: str) -> None:
    """Have the former agent end, with its workers."""
    there = await connect(name)
    if there is None:
        return
    reader, writer = there
    try:
        writer.write(b"end\n")
        await asyncio.wait_for(reader.read(), END_SECONDS)
    except (OSError, asyncio.TimeoutError):
        keeper = _peer(writer.get_extra_info("socket"))[0]
        if keeper > 0:  # 0: it is in another container
            os.kill(keeper, signal.SIGKILL)
    finally:
        writer.close()


def _path(name: str) -> str:
    return f"\0hvtrain-{os.getuid()}-{name}"


def _peer(connection: socket.socket) -> tuple[int, int]:
    """Process and user id of the other end."""
    pid, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return pid, uid
