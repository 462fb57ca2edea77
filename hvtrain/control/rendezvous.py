"""The rendezvous of one round: a small key-value server that speaks what Horovod's gloo store asks for.

``PUT/GET/DELETE /scope/key`` with opaque bytes, as :class:`horovod.runner.http.http_server.RendezvousServer`
does, but on the one interface in use, with limits, without Horovod in the coordinator's process, and closed
as soon as its round is over. A member that has found its peers deletes its key; the values stay until the
round is closed, because others may still be looking.
"""

from __future__ import annotations

from aiohttp import web

MAX_VALUE_BYTES = 1 << 20
"""A member's value holds 136 bytes for each other member (Horovod 0.28.1, gloo's full mesh)."""

MAX_BYTES = 1 << 29
"""All values together: 1,000 ranks need about 140 MB."""


class Rendezvous:
    """One round's store. ``start`` returns the port; ``close`` ends it."""

    def __init__(self, host: str):
        self.host = host
        self._values: dict[tuple[str, str], bytes] = {}
        self._called_off = False
        self._bytes = 0
        self._runner: web.AppRunner | None = None

    async def start(self) -> int:
        """Listen on ``host`` at a free port and return the port. Raises OSError if that is impossible."""
        app = web.Application(client_max_size=MAX_VALUE_BYTES)
        app.router.add_get("/{scope}/{key}", self._get)
        app.router.add_put("/{scope}/{key}", self._put)
        app.router.add_delete("/{scope}/{key}", self._delete)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.host, 0)
        await site.start()
        return self._runner.addresses[0][1]

    def call_off(self) -> None:
        """A member is gone: from now on every missing key has a value that no gloo can parse.

        So whoever waits for a dead member's address raises at once instead of sitting out ``comm.timeout``.
        """
        self._called_off = True

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

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
