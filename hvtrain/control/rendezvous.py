"""The rendezvous of one round: a small key-value server that speaks what Horovod's gloo store asks for.

``PUT/GET/DELETE /path/scope/key`` with opaque bytes, as :class:`horovod.runner.http.http_server.RendezvousServer`
does, but on the one interface in use, below a path that only the round's members know, with limits, without Horovod in
the coordinator's process, and closed as soon as its round is over. A member that has found its peers deletes its key;
the values stay until the round is closed, because others may still be looking.

Gloo sends no proof with its requests, so who may knock is told by the address: only hosts of the round's members are
listened to (:class:`hvtrain.control.gate.Gate`).
"""

from __future__ import annotations

import hmac
from typing import Awaitable, Callable

from aiohttp import web
from aiohttp.typedefs import Handler

from hvtrain.control.gate import Gate
from hvtrain.control.refusals import Refusals

MAX_VALUE_BYTES = 1 << 20
"""A member's value holds 136 bytes for each other member (Horovod 0.28.1, gloo's full mesh)."""

MAX_BYTES = 1 << 29
"""All values together: 1,000 ranks need about 140 MB."""


REQUEST_SECONDS = 30.0
"""How long a connection may take; gloo opens one for each request."""

REQUEST_BYTES = MAX_VALUE_BYTES + (16 << 10)
"""What may be said on one connection: a value, and what HTTP says about it."""


class Rendezvous:
    """One round's store. ``start`` returns the port; ``close`` ends it.

    ``admits``: whether anybody at an address may use it. ``path``: what the path of every request must begin with
    (:func:`hvtrain.engine.roundsecret.path`); with ``bare``, or if it is "", requests without it are answered, too.
    """

    def __init__(self, host: str, admits: Callable[[str], bool] = lambda address: True, *, path: str = "",
                 bare: bool = False):
        self.host, self._admits = host, admits
        self._path, self._bare = path, bare or not path
        self._values: dict[tuple[str, str], bytes] = {}
        self._called_off = False
        self._bytes = 0
        self._runner: web.AppRunner | None = None
        self._gate: Gate | None = None

    async def start(self) -> int:
        """Listen on ``host`` at a free port and return the port. Raises OSError if that is impossible."""
        app = web.Application(client_max_size=MAX_VALUE_BYTES)
        for place in (["/{path}/{scope}/{key}"] if self._path else []) + (["/{scope}/{key}"] if self._bare else []):
            app.router.add_get(place, self._members(self._get))
            app.router.add_put(place, self._members(self._put))
            app.router.add_delete(place, self._members(self._delete))
        # Bodies are kept as they are: unpacked, a small one could be a bomb.
        refusals = Refusals(" to a round's rendezvous")
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, auto_decompress=False,
                                     logger=refusals.logger("hvtrain.control.rendezvous"))
        await self._runner.setup()
        assert self._runner.server is not None
        self._gate = Gate(self._runner.server, seconds=REQUEST_SECONDS, most_bytes=REQUEST_BYTES,
                          refusals=refusals, admits=self._admits)
        return await self._gate.open(self.host)

    def call_off(self) -> None:
        """A member is gone: from now on every missing key has a value that no gloo can parse.

        So whoever waits for a dead member's address raises at once instead of sitting out ``comm.timeout``.
        """
        self._called_off = True

    async def close(self) -> None:
        if self._gate is not None:
            self._gate.close()
            self._gate = None
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def _members(self, handler: Callable[[web.Request], Awaitable[web.Response]]) -> Handler:
        """``handler``, for those who know the path: others are turned away before a value of theirs is read."""
        async def handle(request: web.Request) -> web.StreamResponse:
            path = request.match_info.get("path")
            if path is not None and not hmac.compare_digest(path.encode(), self._path.encode()):
                return web.Response(status=403)  # a member that is told 404 asks again, for all of comm.timeout
            return await handler(request)

        return handle

    async def _get(self, request: web.Request) -> web.Response:
        value = self._values.get(_key(request), b"x" if self._called_off else None)
        return web.Response(status=404) if value is None else web.Response(body=value)

    async def _put(self, request: web.Request) -> web.Response:
        value = await request.read()
        key = _key(request)
        if key in self._values:  # each member says its address once; who comes later is somebody else
            return web.Response(status=200 if self._values[key] == value else 409)
        self._bytes += len(value) + 64
        if self._bytes > MAX_BYTES:
            return web.Response(status=413)
        self._values[key] = value
        return web.Response()

    async def _delete(self, request: web.Request) -> web.Response:
        return web.Response()


def _key(request: web.Request) -> tuple[str, str]:
    return request.match_info["scope"], request.match_info["key"]
