"""The warm process: imports the framework and the user's module once, then forks workers on demand.

::

    agent <== socketpair, one JSON object a line ==> warm --fork--> worker, worker, ...

It is single-threaded, has no event loop and no socket but the pair to its agent, so that forking is safe at
any time. It is the workers' parent: it reaps them and reports how they ended. When importing the user's module
has started threads or touched CUDA, forking would not be safe; then it starts fresh interpreters ("spawn").

Commands: ``{"op": "load", "boot": {...}}``, ``{"op": "start", "worker": W, "rank": R, "local_rank": L, "round": K}``,
``{"op": "signal", "worker": W, "signal": N}``. Answers: ``loaded``, ``load_failed``, ``exited``.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
from contextlib import suppress
from dataclasses import replace
from typing import Any

from hvtrain.control import process
from hvtrain.control.boot import Boot
from hvtrain.control.noise import Noise


class Warm:
    """The warm process's loop. ``pair`` is its end of the socket pair; ``noise`` takes what an import writes."""

    def __init__(self, pair: socket.socket, noise: Noise):
        self._pair, self._noise = pair, noise
        self._buffer = b""
        self._boot: Boot | None = None
        self._spawn = False
        self._workers: dict[int, str] = {}  # pid -> worker
        self._wake_read, self._wake_write = os.pipe()
        for end in (self._wake_read, self._wake_write):
            os.set_blocking(end, False)

    def run(self) -> None:
        """Serve the agent until its end of the pair is closed, then end every worker."""
        signal.signal(signal.SIGCHLD, lambda *_: None)  # only the wake-up descriptor matters
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(ignored, signal.SIG_IGN)  # the agent decides; its end closes the pair
        while self._serve():
            pass
        for pid in self._workers:
            os.kill(pid, signal.SIGKILL)

    def _serve(self) -> bool:
        readable, _, _ = select.select([self._pair, self._wake_read], [], [])
        if self._wake_read in readable:
            try:
                os.read(self._wake_read, 4096)
            except BlockingIOError:
                pass
        self._reap()
        if self._pair in readable:
            data = b""
            with suppress(ConnectionError):
                data = self._pair.recv(1 << 16)
            if not data:
                return False
            self._buffer += data
            while b"\n" in self._buffer:
                line, self._buffer = self._buffer.split(b"\n", 1)
                self._command(json.loads(line))
        return True

    def _say(self, **message: Any) -> None:
        with suppress(ConnectionError):  # the agent has gone: the next look at the pair tells
            self._pair.sendall(json.dumps(message).encode() + b"\n")

    def _command(self, command: dict[str, Any]) -> None:
        if command["op"] == "load":
            self._load(Boot.from_json(command["boot"]))
        elif command["op"] == "start":
            assert self._boot is not None
            boot = replace(self._boot, threads=command["threads"])
            self._start(boot, command["worker"], (command["rank"], command["local_rank"], command["round"]))
        elif command["op"] == "signal":
            for pid, worker in self._workers.items():
                if worker == command["worker"]:
                    os.kill(pid, command["signal"])

    def _load(self, boot: Boot) -> None:
        from hvtrain.control import preload

        self._boot = boot
        try:
            why_not_fork = preload.load(boot, self._noise)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever user code raises at import is reported
            from hvtrain import failure

            account = failure.account(error)
            self._say(op="load_failed", exit_code=account.exit_code, reason=account.reason,
                      traceback=traceback.format_exc())
            return
        # What is here stays: a worker's garbage collector need not look at it, and so does not touch, and copy, its pages.
        gc.collect()
        gc.freeze()
        self._spawn = boot.job.launch.start == "spawn" or bool(why_not_fork)
        notice = ""
        if why_not_fork and boot.job.launch.start == "fork":
            notice = f"workers are started with spawn instead of fork, because {why_not_fork}"
        self._say(op="loaded", notice=notice)

    def _start(self, boot: Boot, worker: str, place: tuple[int, int, int]) -> None:
        """``place``: rank, local rank and round that the worker is started for."""
        pid = (self._spawn_worker if self._spawn else self._fork_worker)(boot, worker, place)
        self._workers[pid] = worker

    def _fork_worker(self, boot: Boot, worker: str, place: tuple[int, int, int]) -> int:
        parent = os.getpid()
        sys.stdout.flush()  # what the user's module has printed must not be printed by every child again
        sys.stderr.flush()
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            process.die_with_parent(parent)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._pair.close()
            os.close(self._wake_read)
            os.close(self._wake_write)
            from hvtrain.control.worker import main

            code = main(boot, worker, *place, said=self._noise.text())
        except BaseException:  # noqa: BLE001 - a forked child must never return into the parent's code
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _spawn_worker(self, boot: Boot, worker: str, place: tuple[int, int, int]) -> int:
        child = subprocess.Popen([sys.executable, "-m", "hvtrain.control.spawned", str(os.getpid())],
                                 stdin=subprocess.PIPE, pass_fds=boot.snapshots)
        assert child.stdin is not None
        child.stdin.write(json.dumps({"boot": boot.to_json(), "worker": worker, "place": place}).encode())
        child.stdin.close()
        child.returncode = 0  # reaped below by pid; keeps Popen from waiting for it a second time
        return child.pid

    def _reap(self) -> None:
        while self._workers:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            worker = self._workers.pop(pid, None)
            if worker is not None:
                signalled = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
                code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 0
                self._say(op="exited", worker=worker, code=code, signal=signalled)


def main() -> None:
    """``python -m hvtrain.control.warm FD PARENT_PID FRAMEWORK NOISE``: serve on the socket FD; NOISE is a file."""
    process.die_with_parent(int(sys.argv[2]))
    process.set_name("hvtrain-warm")
    from hvtrain.adapters import import_framework
    from hvtrain.errors import EnvironmentNotReady

    noise = Noise(int(sys.argv[4]))
    try:
        with noise.caught():
            import_framework(sys.argv[3])
    except (EnvironmentNotReady, ImportError):
        pass  # "load" says it again, to somebody who listens
    Warm(socket.socket(fileno=int(sys.argv[1])), noise).run()
    os._exit(0)  # tearing a framework down takes half a second and serves nobody


if __name__ == "__main__":
    main()
