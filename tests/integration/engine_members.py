"""The test's side of engine_fork.py: members, rounds of members, and peers that do not do what they should."""

from __future__ import annotations

import atexit
import functools
import importlib.util
import json
import os
import queue
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from engine_store import Store

SCRIPT = Path(__file__).with_name("engine_fork.py")
ROOT = SCRIPT.parents[2]
SOON = 5.0  # seconds on a busy machine; what is waited for in these tests takes 60 s where it is not ended


class Member:
    """One forked process. Commands are sent with :meth:`send`, answers are read in any order."""

    def __init__(self, connection: socket.socket):
        connection.settimeout(None)
        self._lines, self._number = connection.makefile("rw"), 0
        self.pid: int = json.loads(self._lines.readline())["pid"]
        self._answers: dict[int, queue.Queue[dict | None]] = {}
        threading.Thread(target=self._read, daemon=True).start()

    def send(self, do: str, **arguments: object) -> int:
        """Give a command; returns the number that :meth:`answer` takes."""
        self._number += 1
        self._answers[self._number] = queue.Queue()
        self._lines.write(json.dumps({"id": self._number, "do": do, **arguments}) + "\n")
        self._lines.flush()
        return self._number

    def answer(self, number: int, seconds: float = 20.0) -> dict:
        """The answer to that command. Fails if the process ends or nothing comes in time."""
        try:
            answer = self._answers[number].get(timeout=seconds)
        except queue.Empty:
            raise AssertionError(f"no answer within {seconds} s") from None
        assert answer is not None, "the process has ended"
        return answer

    def do(self, do: str, seconds: float = 20.0, **arguments: object) -> object:
        """Give a command and return its value. Fails where it raises."""
        answer = self.answer(self.send(do, **arguments), seconds)
        assert "value" in answer, answer
        return answer["value"]

    def waits(self, number: int, seconds: float = 0.3) -> None:
        """Make sure that this command is not answered for a while."""
        try:
            answer = self._answers[number].get(timeout=seconds)
        except queue.Empty:
            return
        raise AssertionError(f"it should wait, but came back with {answer}")

    def signal(self, number: signal.Signals) -> None:
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            assert number in (signal.SIGKILL, signal.SIGCONT)

    def _read(self) -> None:
        try:
            for line in self._lines:
                answer = json.loads(line)
                self._answers[answer["id"]].put(answer)
        except (OSError, ValueError):
            pass
        for answers in list(self._answers.values()):
            answers.put(None)


class Members:
    """Forks members from one process that has imported ``framework``."""

    def __init__(self, framework: str, directory: Path):
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(directory / "members"))
        self._listener.listen(64)
        self._listener.settimeout(30)
        self._all: list[Member] = []
        self._ready = False
        quiet = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3",
                 "PYTHONPATH": os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(ROOT)])}
        self._log = open(directory / "log", "w+", encoding="utf-8")
        self._process = subprocess.Popen(
            [sys.executable, str(SCRIPT), framework, str(directory / "members")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, env={**os.environ, **quiet})

    def fork(self, count: int) -> list[Member]:
        if not self._ready:
            self._ready = True
            assert self._process.stdout.readline() == b"ready\n", self.log()
        self._process.stdin.write(b"." * count)
        self._process.stdin.flush()
        new = [Member(self._listener.accept()[0]) for _ in range(count)]
        self._all += new
        return new

    def log(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def end(self) -> None:
        """End every member."""
        for member in self._all:
            member.signal(signal.SIGKILL)
        self._all.clear()

    def close(self) -> None:
        """End the process that forks, too."""
        self.end()
        self._process.kill()
        self._process.wait(10)
        for file in (self._process.stdin, self._process.stdout, self._log, self._listener):
            file.close()


@functools.cache
def warm(framework: str) -> Members:
    """The one that forks for this framework; it lives until the tests end. Fails where the engine is not usable."""
    from hvtrain.engine.info import engine_info

    if importlib.util.find_spec(framework) is None:
        pytest.fail(f"{framework} is not installed, and 'make test' installs it: nothing would be tested here")
    info = engine_info()
    assert framework in info.usable and info.edits_current, f"{info.problems} Mend it with: {info.remedy}"
    directory = tempfile.TemporaryDirectory(prefix="members-")
    members = Members(framework, Path(directory.name))
    atexit.register(directory.cleanup)
    atexit.register(members.close)
    return members


def place(port: int, rank: int, size: int, **more: object) -> dict[str, object]:
    """The arguments of a Place on the loopback."""
    return {"rank": rank, "size": size, "local_rank": rank, "local_size": size, "rendezvous_host": "127.0.0.1",
            "rendezvous_port": port, "interface": "lo", "timeout": 60.0, **more}


def addresses(value: bytes) -> list[tuple[str, int]]:
    """What a member has published: where it listens for each of the others (gloo's transport/tcp/address.h)."""
    found = []
    for begin in range(0, len(value), 136):
        family, port, host = struct.unpack_from("=H2s4s", value, begin)
        assert family == socket.AF_INET
        found.append((socket.inet_ntoa(host), int.from_bytes(port, "big")))
    return found


def published(address: tuple[str, int]) -> bytes:
    """What a member of two publishes that listens there."""
    name = struct.pack("=H2s4s", socket.AF_INET, address[1].to_bytes(2, "big"), socket.inet_aton(address[0]))
    return name.ljust(128, b"\0") + struct.pack("=q", -1)


def lower_listener(backlog: int) -> socket.socket:
    """A listener whose address is lower, for gloo, than that of any member here: the member connects to it.

    gloo compares ports as they stand in memory, the low byte first, and the kernel gives members ports from 32768 on.
    """
    for port in range(0x4000, 0x8000, 0x100):
        try:
            return socket.create_server(("127.0.0.1", port), backlog=backlog)
        except OSError:
            continue
    raise AssertionError("no port is free")


HIGHEST = ("127.0.0.1", 0xFFFF)
"""An address that no member has: gloo's members connect from the higher one to the lower one."""


def crowded() -> tuple[socket.socket, list[socket.socket]]:
    """A listener that takes no connection any more, so that connecting to it waits, and those that fill it."""
    server, clients = lower_listener(backlog=0), []
    for _ in range(3):
        client = socket.socket()
        client.setblocking(False)
        client.connect_ex(server.getsockname())
        clients.append(client)
    time.sleep(0.05)
    return server, clients


def form(members: list[Member], store: Store, **more: object) -> None:
    """Form a round of these members and make sure that it adds up."""
    formed(members, start(members, store, **more))


def start(members: list[Member], store: Store, **more: object) -> list[int]:
    """Let these members form a round, ranked as they stand there; the numbers of the commands."""
    more = {"size": len(members), **more}
    return [begin(member, **place(port=store.port, rank=rank, **more)) for rank, member in enumerate(members)]


def begin(member: Member, **place: object) -> int:
    """From here on it can be called off; the number of the command."""
    member.do("prepare", **place)
    return member.send("run")


def formed(members: list[Member], begun: list[int]) -> None:
    """Make sure that these members have formed the round that they have begun to form, and that it adds up."""
    assert [member.answer(number).get("value") for member, number in zip(members, begun)] == [len(members)] * len(members)
    check_sum(members)


def check_sum(members: list[Member]) -> None:
    numbers = [member.send("reduce", value=float(rank + 1)) for rank, member in enumerate(members)]
    for member, number in zip(members, numbers):
        assert member.answer(number).get("value") == sum(range(1, len(members) + 1))


def close(members: list[Member]) -> None:
    numbers = [member.send("close") for member in members]
    for member, number in zip(members, numbers):
        assert "error" not in member.answer(number)


def call_off(member: Member, number: int) -> None:
    """Call off the round that this command forms. It may have been formed before that: then it is broken."""
    member.do("abandon")
    answer = member.answer(number, SOON)
    if "value" in answer:
        broken_soon(member, member.send("reduce", value=1.0))
        member.do("close")
    else:
        assert answer["error"] == "RoundBroken", answer


def broken_soon(member: Member, number: int) -> dict:
    """Waits for the answer to a command that must raise RoundBroken."""
    answer = member.answer(number, SOON)
    assert answer.get("error") == "RoundBroken", answer
    return answer
