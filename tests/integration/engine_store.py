"""The key-value store by which Horovod processes find each other, with its contents open to the test."""

from __future__ import annotations

import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Store:
    """What Horovod's gloo contexts rendezvous by: PUT and GET of /scope/key on the loopback.

    A path before the scope, as members of a round with a secret put it there, is left out of the keys; ``paths`` has it.
    """

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.values: dict[str, bytes] = {}
        self.paths: set[str] = set()
        values, paths = self.values, self.paths

        def key(path: str) -> str:
            before, scope, name = path.rsplit("/", 2)
            paths.add(before.lstrip("/"))
            return f"/{scope}/{name}"

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                value = values.get(key(self.path))
                self._answer(404 if value is None else 200, value or b"")

            def do_PUT(self) -> None:
                values.setdefault(key(self.path), self.rfile.read(int(self.headers["Content-Length"])))
                self._answer(200)

            def do_DELETE(self) -> None:
                self._answer(200)

            def _answer(self, status: int, body: bytes = b"") -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

        self._server = Server((host, 0), Handler)
        self._server.handle_error = lambda request, address: None  # ranks that die leave in the middle of a request
        self.port: int = self._server.server_port
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def env(self, rank: int, size: int, **more: str) -> dict[str, str]:
        """The variables with which a process joins a round on this store."""
        return {
            "HOROVOD_RANK": str(rank), "HOROVOD_SIZE": str(size), "HOROVOD_LOCAL_RANK": str(rank),
            "HOROVOD_LOCAL_SIZE": str(size), "HOROVOD_CROSS_RANK": "0", "HOROVOD_CROSS_SIZE": "1",
            "HOROVOD_HOSTNAME": "localhost", "HOROVOD_GLOO_RENDEZVOUS_ADDR": "127.0.0.1",
            "HOROVOD_GLOO_RENDEZVOUS_PORT": str(self.port), "HOROVOD_CONTROLLER": "gloo",
            "HOROVOD_CPU_OPERATIONS": "gloo", "HOROVOD_GLOO_IFACE": "lo", "HOROVOD_GLOO_TIMEOUT_SECONDS": "60",
            **more}

    def wait_for(self, *keys: str, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not all(key in self.values for key in keys):
            assert time.monotonic() < end, f"{keys} wanted, {sorted(self.values)} there"
            time.sleep(0.01)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
