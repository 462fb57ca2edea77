"""A plain TCP transfer, for the bandwidth that can be had.

transfer.py receive ADDRESS PORT
transfer.py send ADDRESS PORT MB
"""

from __future__ import annotations

import json
import socket
import sys
import time

CHUNK = 1 << 20
PATIENCE = 20.0
"""Seconds that either end waits for the other."""


def receive(address: str, port: int) -> None:
    """Take one connection's bytes; print how many came in how many seconds after the first ones."""
    with socket.create_server((address, port)) as server:
        server.settimeout(PATIENCE)
        connection, _ = server.accept()
    with connection:
        connection.settimeout(PATIENCE)
        room = bytearray(CHUNK)
        connection.recv_into(room)
        begin, total = time.monotonic(), 0
        while count := connection.recv_into(room):
            total += count
    print(json.dumps({"bytes": total, "seconds": time.monotonic() - begin}))


def send(address: str, port: int, mb: float) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            connection = socket.create_connection((address, port), timeout=PATIENCE)
            break
        except ConnectionRefusedError:  # the receiver is not up yet
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
    chunk = bytes(CHUNK)
    with connection:
        for _ in range(round(mb * 1e6 / CHUNK)):
            connection.sendall(chunk)


if __name__ == "__main__":
    if sys.argv[1] == "receive":
        receive(sys.argv[2], int(sys.argv[3]))
    else:
        send(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
