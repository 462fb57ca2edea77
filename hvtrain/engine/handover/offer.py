"""The giving side of a handover: one thread serves all receivers."""

from __future__ import annotations

import selectors
import socket
import time
from collections import Counter
from typing import Any, Mapping

from hvtrain.checkpoint.blob import Blob
from hvtrain.control.refusals import Refusals
from hvtrain.engine.breaker import Breaker
from hvtrain.engine.handover import wire
from hvtrain.engine.handover.guest import Guest, Stranger
from hvtrain.errors import EnvironmentNotReady, RoundBroken

MOST_STRANGERS = 64
"""Connections that have not proven anything yet; with one more, the oldest of the host that has the most is dropped: so a
crowd keeps out itself only."""
_BACKLOG = 256


class Offer:
    """Listens for those that lack the state, on one address. Make it, tell them :attr:`address`, then ``serve``.

    Args:
        host: the address of one interface of this host.
        token: the job's token; who does not prove to know it gets nothing.

    Raises:
        EnvironmentNotReady: there is no such address here.
    """

    def __init__(self, host: str, token: str):
        self._token = token
        try:
            family, kind, number, _, place = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
            self._listener = socket.socket(family, kind, number)
        except OSError as error:
            raise EnvironmentNotReady(f"Cannot give the training state away at {host!r}: {error}.") from None
        try:
            self._listener.bind(place)
            self._listener.listen(_BACKLOG)
        except OSError as error:
            self._listener.close()
            raise EnvironmentNotReady(f"Cannot give the training state away at {host!r}: {error}.") from None
        self._listener.setblocking(False)
        self._breaker = Breaker()

    @property
    def address(self) -> tuple[str, int]:
        """(numeric address, port)."""
        name = self._listener.getsockname()
        return name[0], name[1]

    def serve(self, receivers: int, groups: Mapping[str, Mapping[str, Blob]],
              state: Mapping[str, Any] | None = None, *, timeout: float) -> int:
        """Send tensors and JSON ``state`` to exactly ``receivers`` members, all at once; returns the bytes sent.

        The tensors must not change meanwhile. ``timeout`` (seconds) bounds every period in which one receiver makes no
        progress; for one that has not come yet, from the beginning. Returns when all have confirmed.

        Raises:
            RoundBroken: a receiver is gone, stands still or does not come; or :meth:`cut`.
            ProtocolError: the outline is too long, or a receiver says what none would.
            UserCodeError: JSON cannot hold ``state``.
        """
        self._breaker.check()
        if receivers == 0:
            return 0
        message = wire.encode(groups, state or {})
        service = _Service(self._listener, self._breaker, self._token, receivers, timeout, message)
        try:
            return service.run()
        finally:
            service.close()

    def cut(self) -> None:
        """Break :meth:`serve` out with RoundBroken, now or as soon as it is called. From any thread."""
        self._breaker.cut()

    def close(self) -> None:
        """Stop listening."""
        self._listener.close()
        self._breaker.close()

    def __enter__(self) -> Offer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Service:
    """One ``serve``: strangers prove what they know and become guests; guests are sent the message and confirm."""

    def __init__(self, listener: socket.socket, breaker: Breaker, token: str, receivers: int, timeout: float,
                 message: list[memoryview | bytes]):
        self._listener, self._breaker, self._token = listener, breaker, token
        self._missing, self._timeout, self._message = receivers, timeout, message
        self._begun = time.monotonic()
        self._strangers: list[Stranger] = []  # oldest first
        self._refusals = Refusals(" to the giver of state")
        self._guests: list[Guest] = []
        self._sent = 0
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(breaker, selectors.EVENT_READ)

    def run(self) -> int:
        while self._missing or self._guests:
            ready = self._selector.select(max(0.0, self._deadline() - time.monotonic()))
            self._breaker.check()
            for key, events in ready:
                if key.data is None:
                    self._accept()
                elif isinstance(key.data, Stranger):
                    self._hear(key.data)
                else:
                    self._tend(key.data, events)
            self._give_up_on_the_late()
        return self._sent

    def close(self) -> None:
        """Drop all connections; the listener stays."""
        for each in (*self._strangers, *self._guests):
            each.sock.close()
        self._selector.close()

    def _accept(self) -> None:
        if not self._missing:
            return  # the listener has gone from the selector in this very round
        try:
            sock, address = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError as error:  # out of descriptors
            if not self._strangers:
                raise EnvironmentNotReady(f"Cannot accept a receiver of the training state: {error}.",
                                          "ulimit -n 65536") from None
            self._drop(self._crowded_out(), "it has proven nothing and descriptors ran out")
            return
        stranger = Stranger(sock, f"{address[0]}:{address[1]}", self._token, time.monotonic() + self._timeout)
        self._strangers.append(stranger)
        self._selector.register(sock, selectors.EVENT_READ, stranger)
        if not stranger.greet():
            self._drop(stranger, "it was gone before it was greeted")
        elif len(self._strangers) > MOST_STRANGERS:
            self._drop(self._crowded_out(), "there are too many that have proven nothing")

    def _hear(self, stranger: Stranger) -> None:
        if stranger.sock.fileno() < 0:
            return  # dropped in this very round
        trusted = stranger.hear()
        if trusted is False:
            self._drop(stranger, "it does not prove that it belongs to the job")
        elif trusted and self._missing:
            self._strangers.remove(stranger)
            guest = Guest(stranger, self._message, self._timeout)
            self._guests.append(guest)
            self._selector.modify(guest.sock, selectors.EVENT_READ | selectors.EVENT_WRITE, guest)
            self._missing -= 1
            if not self._missing:
                self._selector.unregister(self._listener)
        elif trusted:
            self._drop(stranger, "all receivers are there already")

    def _tend(self, guest: Guest, events: int) -> None:
        if events & selectors.EVENT_READ:
            if not guest.confirm():
                return
            self._guests.remove(guest)
            self._selector.unregister(guest.sock)
            guest.sock.close()
        elif events & selectors.EVENT_WRITE:
            self._sent += guest.send()
            if guest.all_sent:
                self._selector.modify(guest.sock, selectors.EVENT_READ, guest)

    def _crowded_out(self) -> Stranger:
        """The oldest stranger of the host that has the most."""
        counts = Counter(each.host for each in self._strangers)
        host = max(counts, key=lambda each: counts[each])
        return next(each for each in self._strangers if each.host == host)

    def _drop(self, stranger: Stranger, why: str) -> None:
        self._refusals.log(stranger.address, why)
        self._strangers.remove(stranger)
        self._selector.unregister(stranger.sock)
        stranger.sock.close()

    def _deadline(self) -> float:
        coming = [self._begun + self._timeout] if self._missing else []
        return min([*coming, *(each.deadline for each in (*self._strangers, *self._guests))])

    def _give_up_on_the_late(self) -> None:
        now = time.monotonic()
        for stranger in [each for each in self._strangers if each.deadline <= now]:
            self._drop(stranger, f"it was silent for {self._timeout:g} s")
        for guest in self._guests:
            if guest.deadline <= now:
                raise RoundBroken(f"the member at {guest.address}, which is being sent the state, has made no progress "
                                  f"for {self._timeout:g} s")
        if self._missing and self._begun + self._timeout <= now:
            raise RoundBroken(f"{self._missing} of the members that lack the state have not come for it "
                              f"within {self._timeout:g} s")
