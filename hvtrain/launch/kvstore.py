"""The key-value server that horovodrun runs for its processes: HTTP, ``SCOPE/KEY``, values of bytes.

It checks nothing: whoever reaches its port may read and write all of it (Horovod 0.28.1, runner/http/http_server.py).
So no secret belongs there, and what is read there may be anybody's.
"""

from __future__ import annotations

import asyncio
import os
import socket

SECONDS = 10.0
"""How long a request may take unless it is said otherwise."""

MAX_BYTES = 1 << 20
"""Longest answer that is read."""

_KEEPALIVE = {socket.TCP_KEEPIDLE: 15, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 3}  # seconds, seconds, probes


class Store:
    """Requests to the server at ``host`` and ``port``, each over a connection of its own."""

    def __init__(self, host: str, port: int):
        self._host, self._port = host, port

    @classmethod
    def of_environment(cls) -> Store:
        """The store of the horovodrun that started this process."""
        return cls(os.environ["HOROVOD_GLOO_RENDEZVOUS_ADDR"], int(os.environ["HOROVOD_GLOO_RENDEZVOUS_PORT"]))

    async def get(self, path: str, seconds: float | None = SECONDS) -> str | None:
        """The value at ``SCOPE/KEY``, None if there is none.

        ``seconds`` None waits as long as the connection lives, for answers that the server holds back.

        Raises:
            ConnectionError: the server cannot be reached, or does not answer, or not in time.
        """
        status, body = await self._ask(f"GET /{path} HTTP/1.0\r\n\r\n".encode(), seconds)
        if status == 404:
            return None
        if status != 200:
            raise ConnectionError(f"horovodrun's key-value server answered {status} to a request for {path}")
        return body.decode("utf-8", "replace")

    async def put(self, path: str, value: bytes, seconds: float = SECONDS) -> None:
        """Set the value at ``SCOPE/KEY``. Raises ConnectionError as :meth:`get`."""
        head = f"PUT /{path} HTTP/1.0\r\nContent-Length: {len(value)}\r\n\r\n".encode()
        status, _ = await self._ask(head + value, seconds)
        if status != 200:
            raise ConnectionError(f"horovodrun's key-value server answered {status} to a new value of {path}")

    async def _ask(self, request: bytes, seconds: float | None) -> tuple[int, bytes]:
        try:
            return await asyncio.wait_for(self._exchange(request), seconds)
        except (OSError, asyncio.TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError,
                ValueError) as error:
            raise ConnectionError(f"horovodrun's key-value server at {self._host}:{self._port} does not answer: "
                                  f"{error or type(error).__name__}") from None

    async def _exchange(self, request: bytes) -> tuple[int, bytes]:
        reader, writer = await asyncio.wait_for(asyncio.open_connection(self._host, self._port), SECONDS)
        try:
            _keep_alive(writer.get_extra_info("socket"))
            writer.write(request)
            answer = await reader.readuntil(b"\r\n\r\n")
            status, *headers = answer.decode("latin-1").split("\r\n")
            fields = dict(line.lower().split(":", 1) for line in headers if ":" in line)
            length = int(fields.get("content-length", "0"))
            if not 0 <= length <= MAX_BYTES:
                raise ValueError(f"it announces {length} bytes")
            return int(status.split(" ")[1]), await reader.readexactly(length)
        except IndexError:
            raise ValueError("its answer is not HTTP") from None
        finally:
            writer.close()


def _keep_alive(connection: socket.socket) -> None:
    """Have the kernel notice within half a minute that the other host is gone."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE.items():
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
