"""Breaking a thread out of waiting for a socket, from another thread."""

from __future__ import annotations

import select
import socket
import threading
import time

from hvtrain.errors import RoundBroken


class Breaker:
    """Cut once, it stays cut: whoever waits with it now or later gets RoundBroken at once.

    It is a descriptor that becomes readable, so it can also be watched beside others by a selector.
    """

    def __init__(self) -> None:
        self._near, self._far = socket.socketpair()
        self._lock = threading.RLock()  # not Lock: a signal handler may cut, too
        self._cut = False

    def cut(self) -> None:
        """Break out whoever waits. Any thread, any number of times, also after :meth:`close`."""
        with self._lock:
            self._cut = True
            if self._far.fileno() >= 0:
                # Not close(): a forked child may hold a copy, and then the other end would notice nothing.
                self._far.shutdown(socket.SHUT_RDWR)

    def check(self) -> None:
        """Raise RoundBroken if it has been cut."""
        if self._cut:
            raise RoundBroken("the round was broken from outside")

    def wait(self, sock: socket.socket, event: int, deadline: float, what: str) -> None:
        """Until ``sock`` is ready for ``event`` (POLLIN or POLLOUT).

        Raises:
            RoundBroken: cut, or not ready by ``deadline`` (of ``time.monotonic``); ``what`` says what was waited for.
        """
        poll = select.poll()
        poll.register(sock, event)
        poll.register(self._near, select.POLLIN)
        ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
        self.check()
        if not ready:
            raise RoundBroken(f"no progress until the time was up: {what}")

    def fileno(self) -> int:
        """The descriptor that becomes readable."""
        return self._near.fileno()

    def close(self) -> None:
        """Give the descriptors up."""
        with self._lock:
            self._near.close()
            self._far.close()
