"""Connections over a network that drops packets without a word: the kernel is to notice, not a person."""

from __future__ import annotations

import socket
from typing import Any

PROBES = 3
"""So many unanswered probes end a connection on which nobody says anything."""


def notice(sock: Any, seconds: float) -> None:
    """Have the connection break when what was sent is not confirmed for so long, or probes of an idle one are not.

    ``sock`` is a socket, or what asyncio gives as one; None, or one that is not TCP, is left as it is. Linux only;
    elsewhere the signs of life of the job's processes have to do.
    """
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6) or not hasattr(socket, "TCP_USER_TIMEOUT"):
        return
    pause = max(1, round(seconds / PROBES))
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, pause)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, pause)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, round(1000 * seconds)))
    except OSError:  # it is closed already
        pass
