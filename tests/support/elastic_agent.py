"""An agent without training, for tests of horovodrun's elastic mode: the real protocol, a coordinator that only counts.

The process of rank 0 listens for the others and writes every change of who is connected to ``DIRECTORY/log``; the file
``DIRECTORY/end`` with an exit code in it ends the job. Usage: python elastic_agent.py DIRECTORY
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path

from hvtrain.control.client import Address
from hvtrain.launch import horovod_elastic as elastic
from hvtrain.launch import lives
from hvtrain.launch.board import Board, Notice
from hvtrain.launch.kvstore import Store
from hvtrain.launch.liaison import Liaison

DIRECTORY = Path(sys.argv[1])
SLOT = elastic.own_slot()


def note(**values) -> None:
    record = {"time": time.time(), "slot": SLOT, "pid": os.getpid(), "life": lives.life(), **values}
    with open(DIRECTORY / "log", "a") as file:
        file.write(json.dumps(record) + "\n")


async def first(store: Store, board: Board) -> int:
    peers: dict[str, asyncio.StreamWriter] = {}
    resigned = asyncio.Event()

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        slot = (await reader.readline()).decode().strip()
        peers[slot] = writer
        try:
            await reader.read()
        except ConnectionError:
            pass
        if peers.get(slot) is writer:
            del peers[slot]

    server = await asyncio.start_server(meet, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    liaison = Liaison(store, board, connected=lambda: list(peers), resign=resigned.set,
                      evict=lambda slot: peers[slot].write(b"143\n") if slot in peers else None)
    await liaison.start(Notice(Address("127.0.0.1", port, "token"), workers=lives.first_size()), "lo")
    seen = None
    while not (DIRECTORY / "end").exists():
        if resigned.is_set():
            break
        if seen != (seen := sorted(peers)):
            note(connected=[SLOT, *seen])
        await asyncio.sleep(0.02)
    code = 144 if resigned.is_set() else int((DIRECTORY / "end").read_text())
    await liaison.settle(code)
    for writer in peers.values():
        writer.write(f"{code}\n".encode())
    await asyncio.sleep(0.1)
    await liaison.close()
    return code


async def other(store: Store, board: Board) -> int:
    notice = await board.find(20)
    if notice.over is not None:
        return notice.over
    code = None
    if notice.address is not None:
        try:
            reader, writer = await asyncio.open_connection(notice.address.host, notice.address.port)
            writer.write(f"{SLOT}\n".encode())
            code = await elastic.verdict(int(await reader.readline()), board)
        except (ConnectionError, ValueError):
            pass  # the first process is gone
    if code is None:
        place = await elastic.next_place(store)
        if place is not None:
            lives.start_over(place.environment(), workers=notice.workers, memory=None, unreached=False)
        code = 144
    return code


async def main() -> int:
    assert elastic.is_elastic()
    store = Store.of_environment()
    board = Board(store, DIRECTORY)
    note(place=elastic.Place.of_environment().rank)
    code = await (first if elastic.Place.of_environment().rank == 0 else other)(store, board)
    note(exit=code)
    return code


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
