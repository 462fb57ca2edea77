"""Writers that are killed: at random moments by SIGKILL, and at every single file operation in turn.

A server process (this file, run as a script) imports everything once and forks a writer for each trial; the
test kills the writer itself, never the server.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hvtrain.checkpoint import Blob, Retention, Snapshot, Store, verify

KILLS = 30
KEEP = 3


def snapshot(step: int, value: int, size: int) -> Snapshot:
    data = bytes([value % 256]) * size
    tensors = {"w": Blob("U8", (size,), data)}
    return Snapshot(step=step, epoch=0, state={"cursor": step, "value": value},
                    groups={"model": tensors, "optimizer": tensors, "ema": tensors})


# --- the writer's side ---------------------------------------------------------------------------------

def write_for_ever(directory: str, size: int) -> None:
    """Write step after step, now and then one a second time with other content; say when one is done."""
    from hvtrain.checkpoint import write

    store = Store(directory)
    newest = store.newest_sound()
    step = store.manifest(newest).step if newest else 0
    value = step
    while True:
        value += 1
        if value % 3:
            step += 1
        write(store, snapshot(step, value, size))
        os.write(1, f"{step} {value}\n".encode())
        store.prune(Retention(keep=KEEP))


def write_with_crash(directory: str, crash_at: int, step: int, swap: bool) -> None:
    """Write one step and die at file operation number ``crash_at``; say "done" if that is past the end."""
    from hvtrain.checkpoint import disk, write, writer

    count = 0

    def counted(function):
        def call(*arguments, **more):
            nonlocal count
            count += 1
            if count == crash_at:
                os._exit(9)
            return function(*arguments, **more)
        return call

    swapping = disk.exchange if swap else lambda one, other: False
    writer.exchange = counted(swapping)
    say = os.write
    for name in ("open", "write", "fsync", "rename", "mkdir", "unlink", "rmdir", "close"):
        setattr(os, name, counted(getattr(os, name)))
    store = Store(directory)
    write(store, snapshot(step, 99, 1000))
    store.prune(Retention(keep=KEEP))
    say(1, b"done\n")


def serve() -> None:
    """For each line of arguments fork a writer; print its pid, and its end once it has ended."""
    import hvtrain.checkpoint.writer  # noqa: F401  (so that the writers need not)

    for line in sys.stdin:
        kind, directory, *numbers = line.rstrip("\n").split("\t")
        pid = os.fork()
        if pid == 0:
            try:
                {"for_ever": write_for_ever, "crash": write_with_crash}[kind](directory, *map(int, numbers))
                os._exit(0)
            except BaseException:
                import traceback

                traceback.print_exc()
                os._exit(1)
        os.write(1, f"pid {pid}\n".encode())
        os.waitpid(pid, 0)
        os.write(1, b"end\n")


# --- the test's side -----------------------------------------------------------------------------------

class Server:
    def __init__(self) -> None:
        root = str(Path(__file__).resolve().parents[2])
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])})

    def start(self, *arguments: object) -> int:
        print(*arguments, sep="\t", file=self.process.stdin, flush=True)
        word, pid = self.process.stdout.readline().split()
        assert word == "pid"
        return int(pid)

    def lines_until_end(self) -> list[str]:
        lines = iter(self.process.stdout.readline, "end\n")
        return [line.strip() for line in lines if line or pytest.fail("the server died")]

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.mark.timeout(120)
def test_killed_at_random_moments(server, tmp_path):
    store = Store(tmp_path / "checkpoints")
    random_moment = random.Random(20)
    landed, trials, acknowledged = 0, 0, {}
    while landed < KILLS:
        trials += 1
        assert trials < 6 * KILLS, f"only {landed} of {trials} kills hit a write"
        pid = server.start("for_ever", store.directory, 2 << 20)
        if not acknowledged:  # the first one must have written something before it may die
            step, value = map(int, server.process.stdout.readline().split())
            acknowledged[step] = value
        time.sleep(random_moment.uniform(0.0, 0.12))
        os.kill(pid, signal.SIGKILL)
        for line in server.lines_until_end():
            step, value = map(int, line.split())
            acknowledged[step] = value
        left = [name for name in os.listdir(store.directory) if name.startswith(".tmp-")]
        landed += bool(left)

        newest = store.newest_sound()
        assert newest is not None
        assert all(verify(store.directory / name) == [] for name in os.listdir(store.directory)
                   if name.startswith("step-")), "a named checkpoint is not whole"
        last = max(acknowledged)
        assert store.manifest(newest).step in (last, last + 1)
        # the writer keeps KEEP, and may have finished one more than it could say
        expected = sorted(acknowledged)[-(KEEP - 1):]
        assert set(expected) <= set(store.steps())
        for step in store.steps():
            value = store.read(store.path(step)).state["value"]
            # the acknowledged content, or the next one of the same step, finished but not yet acknowledged
            assert step not in acknowledged or value - acknowledged[step] in (0, 1)
            acknowledged[step] = value
    assert len(os.listdir(store.directory)) <= KEEP + 3  # each writer removed what the one before left


@pytest.mark.timeout(120)
@pytest.mark.parametrize("rewrite, swap", [(False, True), (True, True), (True, False)])
def test_killed_at_every_file_operation(server, tmp_path, rewrite, swap):
    from hvtrain.checkpoint import write

    step = 3 if rewrite else 4
    for older in (1, 2, 3):
        write(Store(tmp_path / "before"), snapshot(older, older, 1000))
    for crash_at in range(1, 400):
        store = Store(tmp_path / str(crash_at) / "checkpoints")
        shutil.copytree(tmp_path / "before", store.directory)
        server.start("crash", store.directory, crash_at, step, int(swap))
        done = "done" in server.lines_until_end()

        newest = store.newest_sound()
        found = store.read(newest).state["value"]
        assert found in (3, 99), f"operation {crash_at}"
        assert not done or found == 99
        assert all(verify(store.directory / name) == [] for name in os.listdir(store.directory)
                   if name.startswith("step-")), f"operation {crash_at}: a named checkpoint is not whole"
        assert {2, 3} <= set(store.steps()), f"operation {crash_at}"
        store.clean()
        assert not [name for name in os.listdir(store.directory) if name.startswith(".")]
        if done:
            break
    assert done and crash_at > 30, "the writer must have died at each of its operations"


if __name__ == "__main__":
    serve()
