"""Cutting a round's sockets: how a rank that waits for a dead peer's neighbour is woken at once."""

from __future__ import annotations

import os
import socket


def stream_sockets() -> set[int]:
    """File descriptors of this process's connected TCP sockets."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        sock = _tcp(fd)
        if sock is not None:
            found.add(fd)
            sock.close()
    return found


def shut(fds: set[int]) -> int:
    """Shut both directions of these sockets without closing them; returns how many were open."""
    count = 0
    for fd in fds:
        sock = _tcp(fd)
        if sock is None:
            continue
        try:
            sock.shutdown(socket.SHUT_RDWR)
            count += 1
        except OSError:
            pass  # the peer was faster
        finally:
            sock.close()
    return count


def _tcp(fd: int) -> socket.socket | None:
    """A duplicate of ``fd`` if it is a connected TCP socket."""
    try:
        if not os.readlink(f"/proc/self/fd/{fd}").startswith("socket:"):
            return None
        sock = socket.socket(fileno=os.dup(fd))
    except OSError:
        return None
    try:
        if sock.type == socket.SOCK_STREAM and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.getpeername()
            return sock
    except OSError:
        pass
    sock.close()
    return None
