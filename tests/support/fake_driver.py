"""Horovod's elastic driver as hvtrain sees it: the key-value store, the book of slots, and its judgement."""

from __future__ import annotations

import asyncio


class FakeDriver:
    """``hosts`` says how many slots each has, the oldest first. ``die`` is what happens to processes."""

    def __init__(self, **hosts: int):
        self.hosts = {name.replace("_", "."): slots for name, slots in hosts.items()}
        self.values: dict[str, bytes] = {}
        self.states: dict[str, str] = {}
        self.mistakes: list[str] = []
        self.books = 0
        self._out: set[str] = set()
        self._waiting: list[tuple[str, asyncio.StreamWriter]] = []
        self._draw_up()

    async def __aenter__(self) -> FakeDriver:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_) -> None:
        self._server.close()

    def die(self, *slots: str) -> None:
        """These processes end with a code other than 0, and the driver notices."""
        for slot in slots:
            self.states[slot] = "FAILURE"
        self._judge()

    def _draw_up(self) -> None:
        self.books += 1
        self.values.clear()
        self.states.clear()
        self.book = [f"{host}:{number}" for host, slots in self.hosts.items() if host not in self._out
                     for number in range(slots)]

    def _judge(self) -> None:
        if set(self.book) - self.states.keys():
            return
        self._out |= {slot.split(":")[0] for slot, state in self.states.items() if state == "FAILURE"}
        self._draw_up()
        waiting, self._waiting = self._waiting, []
        for slot, writer in waiting:
            self._answer(writer, self._place(slot))

    def _place(self, slot: str) -> bytes:
        if slot not in self.book:
            return b"-1,-1,-1,-1,-1,-1"
        return f"{self.book.index(slot)},{len(self.book)},0,1,0,1".encode()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, path = head.split(" ")[:2]
        scope, _, key = path[1:].partition("/")
        if method == "PUT":
            self.values[path[1:]] = await reader.readexactly(int(head.lower().split("content-length:")[1].split()[0]))
            self._answer(writer, b"")
        elif scope == "rank_and_size" and key.split(":")[0] not in self._out:
            if self.states.get(key):
                self.mistakes.append(f"{key} was READY though it had recorded {self.states[key]}")
            self.states[key] = "READY"
            self._waiting.append((key, writer))
            self._judge()
        else:
            self._answer(writer, self._place(key) if scope == "rank_and_size" else self.values.get(path[1:]))

    @staticmethod
    def _answer(writer: asyncio.StreamWriter, value: bytes | None) -> None:
        status = "404 Not Found" if value is None else "200 OK"
        writer.write(f"HTTP/1.0 {status}\r\nContent-Length: {len(value or b'')}\r\n\r\n".encode() + (value or b""))
        writer.close()
