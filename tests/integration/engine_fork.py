"""Members of rounds, forked from one process that has imported the framework: each is there within milliseconds.

Run as ``python engine_fork.py torch|tensorflow ADDRESS`` (a UNIX socket on which the test listens): every byte on its
standard input forks a member, which connects to ADDRESS, says its pid, and from then on reads commands (JSON lines)
and answers each with a JSON line. A command has an ``id`` and ``do``, the name of a function below; those in NOW are
done by the thread that reads, while the main thread is blocked in another one.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import queue
import signal
import socket
import sys
import threading
import time

import numpy as np
import psutil

# Before the fork: what is slow is done once.
FRAMEWORK = sys.argv[1]
if FRAMEWORK == "torch":
    import horovod.torch as hvd
    import torch

    torch.set_num_threads(1)
else:
    import horovod.tensorflow as hvd
    import tensorflow as tf

    tf.config.threading.set_inter_op_parallelism_threads(1)

from hvtrain.engine.rounds import Forming  # noqa: E402
from hvtrain.engine.world import Place  # noqa: E402
from tests.support.parts import hashed, part  # noqa: E402

if FRAMEWORK == "torch":
    from hvtrain.engine.horovod_torch import library, zeros
    from hvtrain.engine.reductions import Reductions

NOW = {"prepare", "abandon", "cut", "users_socket", "users_socket_works", "numbers"}


class Plain:
    """Horovod as it comes: what the edits do is the same whoever calls it."""

    def init(self, env: dict[str, str]) -> int:
        os.environ.update(env)
        hvd.init()
        return hvd.size()

    def shutdown(self) -> bool:
        hvd.shutdown()
        return hvd.is_initialized()

    def add(self, value: float, count: int = 3, times: int = 1) -> float:
        """The sum over all ranks of a vector of ``count`` times ``value``; its last element."""
        for _ in range(times):
            vector = torch.full((count,), value) if FRAMEWORK == "torch" else tf.fill([count], value)
            total = hvd.allreduce(vector, op=hvd.Sum, name="x")
        return float(total[-1])

    def layout(self) -> tuple[int, ...]:
        """What Horovod says about this process's place."""
        return hvd.local_rank(), hvd.local_size(), hvd.cross_rank(), hvd.cross_size()

    def sleep(self, seconds: float) -> float:
        """The processor time that goes by meanwhile."""
        before = time.process_time()
        time.sleep(seconds)
        return time.process_time() - before

    def variable(self, name: str) -> str | None:
        """An environment variable, as Python and the C library have it."""
        getenv = ctypes.CDLL(None).getenv
        getenv.restype, value = ctypes.c_char_p, os.environ.get(name)
        assert getenv(name.encode()) == (value and value.encode())
        return value

    def listening(self) -> list[str]:
        """The addresses of this process's own ends of its sockets."""
        return sorted({connection.laddr.ip for connection in psutil.Process().net_connections("inet")})


class Member(Plain):
    """The engine's rounds, with PyTorch. ``run`` and what a world does run in the main thread."""

    def __init__(self) -> None:
        self.forming: Forming | None = None
        self.world = None
        self.kept: Forming | None = None
        self.pairs: list[tuple[socket.socket, socket.socket]] = []

    def prepare(self, **place: object) -> None:
        self.forming = Forming(Place(**place), "torch")

    def run(self) -> int:
        self.world = None
        self.world = self.forming.run()
        return self.world.size

    def abandon(self) -> None:
        self.forming.abandon()

    def keep_forming(self) -> None:
        self.kept = self.forming

    def abandon_kept(self) -> None:
        self.kept.abandon()

    def cut(self) -> int:
        return self.world.cut()

    def close(self) -> None:
        if self.world is not None:
            self.world.close()

    def reduce(self, value: float, count: int = 3, times: int = 1) -> float:
        for _ in range(times):
            tensor = torch.full((count,), value)
            self.world.wait(self.world.sum_async(tensor, "x"))
        return float(tensor[-1])

    def sums(self, codec: str, counts: list[int], seed: int, kind: str = "normal", shared: bool = False, times: int = 1,
             noise: int | None = None, save: str | None = None) -> list[list[str]]:
        """Sum a part of each of these sizes, all in flight at once; the hashes of the sums, for each of so many times.

        With ``shared`` they lie in memory that the neighbours can read. ``save`` names a file that they are written to.
        """
        self.world.noise(seed if noise is None else noise)
        tensors, found = [self.vector(count, shared) for count in counts], []
        for _ in range(times):
            for number, tensor in enumerate(tensors):
                tensor.copy_(torch.from_numpy(part(kind, len(tensor), seed + number, self.world.rank)))
            handles = [self.world.sum_async(tensor, f"s{number}", codec) for number, tensor in enumerate(tensors)]
            for handle in handles:
                self.world.wait(handle)
            found.append([hashed(tensor.numpy()) for tensor in tensors])
        if save is not None and self.world.rank == 0:
            np.savez(save, *[tensor.numpy() for tensor in tensors])
        return found

    def grind(self, codec: str, count: int, times: int, shared: bool = False) -> float:
        """Sum a large vector of ones time and again; by how much any sum was off at most."""
        tensor, off = self.vector(count, shared), 0.0
        for _ in range(times):
            tensor.fill_(1.0)
            self.world.wait(self.world.sum_async(tensor, "grind", codec))
            off = max(off, float(tensor.sub_(self.world.size).abs_().max()))
        return off

    def flood(self) -> None:
        """Start sums of Horovod's own that no other rank joins, and wait for none: it ends when one is refused."""
        number = 0
        while True:
            hvd.allreduce_async_(torch.zeros(3), name=f"f{number}", op=hvd.Sum)
            number += 1

    def medley(self, seed: int) -> list[str]:
        """Plain, coded and broadcast operations of several types in one go; the hashes of the results."""
        rank, tensors, handles = self.world.rank, [], []
        self.world.noise(seed)
        for number, codec in enumerate(("none", "fp16", "int8", "bf16") * 2):
            tensors.append(torch.from_numpy(part("normal", 3000 + number, seed + number, rank).copy()))
            handles.append(self.world.sum_async(tensors[-1], f"m{number}", codec))
        for name, dtype in (("f64", torch.float64), ("i64", torch.int64)):
            tensors.append(torch.arange(1000, dtype=dtype) * (rank + 1))
            handles.append(self.world.sum_async(tensors[-1], name))
        told = torch.from_numpy(part("normal", 5000, seed, rank).copy())
        self.world.broadcast(told, self.world.size - 1, "told")
        for handle in reversed(handles):
            self.world.wait(handle)
        return [hashed(tensor.numpy()) for tensor in (*tensors, told)]

    def spans(self, codec: str, count: int) -> list[dict]:
        """What the engine tells of two sums, of which only the second one is recorded."""
        reductions = Reductions(library())
        busy = reductions.seconds()
        reductions.record(False)
        self.sums(codec, [count], seed=1)
        reductions.record(True)
        begun = time.monotonic()
        self.sums(codec, [count, 10], seed=1)
        found = reductions.spans()
        assert reductions.seconds() - busy >= sum(span.end - span.begin for span in found)
        assert all(begun <= span.begin <= span.end <= time.monotonic() for span in found), found
        assert reductions.spans() == []
        reductions.record(False)
        return [vars(span) for span in found]

    def memory(self, count: int) -> str:
        """How a vector of that size lies: "shared" with the neighbours, or "private"."""
        vector = self.vector(count, True)
        address = vector.data_ptr()
        with open("/proc/self/maps", encoding="utf-8") as file:
            for line in file:
                low, high = (int(bound, 16) for bound in line.split()[0].split("-"))
                if low <= address < high:
                    return "shared" if "memfd:hvtrain" in line else "private"
        return "nowhere"

    def vector(self, count: int, shared: bool) -> torch.Tensor:
        return zeros(count) if shared else torch.zeros(count)

    def vanish(self, count: int) -> None:
        """Sum a vector that the neighbours cannot map any more, as if this process died when they were about to."""
        tensor = self.vector(count, True)
        for name in os.listdir("/proc/self/fd"):
            if os.path.islink(f"/proc/self/fd/{name}") and "memfd:hvtrain" in os.readlink(f"/proc/self/fd/{name}"):
                os.close(int(name))
        self.world.wait(self.world.sum_async(tensor, "grind"))

    def wrong_name(self) -> None:
        """Ask for a codec that there is not, past what checks it."""
        self.world.wait(self.world.sum_async(torch.zeros(3), "x", "zip"))

    def broadcast(self, value: float, count: int = 3) -> float:
        tensor = torch.full((count,), value)
        self.world.broadcast(tensor, 0, "b")
        return float(tensor[-1])

    def users_socket(self) -> int:
        """Open a TCP connection of the user's, to itself."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            near = socket.create_connection(server.getsockname())
            self.pairs.append((near, server.accept()[0]))
        return near.fileno()

    def users_socket_works(self) -> bool:
        for near, far in self.pairs:
            near.sendall(b"!")
            if far.recv(1) != b"!":
                return False
        return True

    def numbers(self) -> dict[str, int]:
        """Threads, file descriptors and resident kilobytes."""
        gc.collect()
        with open("/proc/self/statm", encoding="ascii") as file:
            pages = int(file.read().split()[1])
        return {"threads": len(os.listdir("/proc/self/task")), "files": len(os.listdir("/proc/self/fd")),
                "kilobytes": pages * os.sysconf("SC_PAGESIZE") // 1024}


def be_a_member(address: str) -> None:
    member, work = Member(), queue.Queue()
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    lines, lock = connection.makefile("rw"), threading.Lock()

    def say(answer: dict) -> None:
        with lock:
            lines.write(json.dumps(answer) + "\n")
            lines.flush()

    def do(command: dict) -> None:
        number, name = command.pop("id"), command.pop("do")
        try:
            answer: dict = {"value": getattr(member, name)(**command)}
        except BaseException as error:  # noqa: BLE001 - the test looks at the type
            answer = {"error": type(error).__name__, "text": str(error)}
        say({"id": number, "at": time.monotonic(), **answer})

    def read() -> None:
        for line in lines:
            command = json.loads(line)
            if command["do"] in NOW:
                do(command)
            else:
                work.put(command)
        os._exit(0)

    say({"pid": os.getpid()})
    threading.Thread(target=read, daemon=True).start()
    while True:
        do(work.get())


if __name__ == "__main__":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the members
    print("ready", flush=True)
    while os.read(0, 1):
        if os.fork() == 0:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            be_a_member(sys.argv[2])
