"""A connection to the giver of a state: first a stranger, then, with proof, a guest."""

from __future__ import annotations

import socket
import time

from hvtrain.control import auth
from hvtrain.engine.handover import wire
from hvtrain.errors import ProtocolError, RoundBroken


class Stranger:
    """Has proven nothing: whatever it does is no error of ours, and it is sent 80 bytes. Dropped at ``deadline``."""

    def __init__(self, sock: socket.socket, address: str, token: str, deadline: float):
        self.sock, self.address, self.token, self.deadline = sock, address, token, deadline
        self.host = address.rpartition(":")[0]
        self._nonce = auth.challenge()
        self._heard = b""

    def greet(self) -> bool:
        """Send the challenge; False if it cannot be sent at once, which a new connection always can."""
        greeting = wire.MAGIC + self._nonce.encode()
        try:
            self.sock.setblocking(False)
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return self.sock.send(greeting) == len(greeting)
        except OSError:
            return False

    def hear(self) -> bool | None:
        """Take what has come: True with proof, False if there will be none, None while it is not complete."""
        try:
            data = self.sock.recv(wire.PROOF_BYTES - len(self._heard))
        except BlockingIOError:
            return None
        except OSError:
            return False
        self._heard += data
        if not data:
            return False
        if len(self._heard) < wire.PROOF_BYTES:
            return None
        return auth.proves(wire.receiver_token(self.token), self._nonce, wire.ascii_text(self._heard))

    @property
    def own_nonce(self) -> str:
        """The nonce that it wants to see answered."""
        return wire.ascii_text(self._heard).partition(":")[0]


class Guest:
    """Has proven to belong to the job, and is sent the message. When it fails, the round is broken.

    ``deadline`` moves on with every byte that it takes.
    """

    def __init__(self, stranger: Stranger, message: list[memoryview | bytes], timeout: float):
        self.sock, self.address = stranger.sock, stranger.address
        self._timeout = timeout
        self.deadline = time.monotonic() + timeout
        proof = auth.answer(wire.giver_token(stranger.token), stranger.own_nonce).encode()
        self._views = wire.Views([proof, *message])

    @property
    def all_sent(self) -> bool:
        """Whether only the confirmation is missing."""
        return not self._views

    def send(self) -> int:
        """Send what the connection takes at once; returns the bytes. Raises RoundBroken if the peer is gone."""
        try:
            count = self.sock.sendmsg(self._views.window())
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self._gone(str(error)) from None
        self._views.advance(count)
        self.deadline = time.monotonic() + self._timeout
        return count

    def confirm(self) -> bool:
        """Whether the confirmation is there. RoundBroken if the peer is gone; ProtocolError for anything else."""
        try:
            data = self.sock.recv(2)
        except BlockingIOError:
            return False
        except OSError as error:
            raise self._gone(str(error)) from None
        if not data:
            raise self._gone("it has closed the connection")
        if data != wire.RECEIVED or not self.all_sent:
            raise ProtocolError(f"the member at {self.address}, which is being sent the state, may only confirm it "
                                f"once; it sent {data!r}")
        return True

    def _gone(self, why: str) -> RoundBroken:
        return RoundBroken(f"the member at {self.address}, which was being sent the state, is gone: {why}")
