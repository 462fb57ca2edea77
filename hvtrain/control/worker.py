"""A worker process: builds the task, takes its seat in the round, trains, and says how it ended."""

from __future__ import annotations

import faulthandler
import logging
import os
import queue
import signal
import sys
import threading
from pathlib import Path
from typing import Any, Mapping

from hvtrain import failure, target
from hvtrain.control import messages, process
from hvtrain.control.boot import Boot
from hvtrain.control.client import ThreadedLink
from hvtrain.engine import rounds, sockets
from hvtrain.engine import world as worlds
from hvtrain.errors import ExitCode, RoundBroken, Stalled
from hvtrain.loop import Loop
from hvtrain.session import QuietSession

log = logging.getLogger(__name__)


def main(boot: Boot, worker: str, rank: int, local_rank: int) -> int:
    """Be worker ``worker`` until its loop ends; returns the process's exit code. Its output goes to its log."""
    process.set_name(f"hvtrain-{worker}")
    _redirect_output(Path(boot.run_dir) / "logs" / f"rank-{rank}.log")
    session = RemoteSession(boot, worker)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the launcher, which asks for a stop
    signal.signal(signal.SIGTERM, lambda number, frame: session.ask_stop(number))
    loop: Loop | None = None
    try:
        session.open()
        task = target.build(boot.job.task.target, boot.module_dir, boot.job.task.args)
        loop = Loop(boot.job, task, session, threads=boot.threads, local_rank=local_rank)
        outcome = loop.run()
        session.finish(messages.Finished(step=outcome.step, stopped=outcome.stopped,
                                         summary=outcome.summary if session.rank == 0 else {}))
        loop.leave()
        return int(ExitCode.DONE)
    except BaseException as error:  # noqa: BLE001 - every end of a worker is accounted for
        log.error("rank %d ends: %s", rank, error, exc_info=not isinstance(error, RoundBroken))
        account = failure.account(error)
        session.finish(messages.Failed(
            exit_code=account.exit_code, reason=account.reason, traceback=account.traceback,
            step=loop.step if loop else 0, lost_peer=account.lost_peer,
            saved_step=loop.salvaged_step if loop else None))
        return account.exit_code
    finally:
        session.close()


class RemoteSession(QuietSession):
    """A session over the coordinator: it gives seats, is told what happens, and says when the round is broken."""

    def __init__(self, boot: Boot, worker: str):
        self._boot = boot
        self._seats: queue.Queue[messages.Seat | None] = queue.Queue()
        self._verdict: queue.Queue[bool] = queue.Queue()
        self._stop = 0
        self._step = 0
        self._world: worlds.World | None = None
        self._lock = threading.Lock()
        self._before_forming: set[int] | None = None
        self._forming = threading.Event()  # set when init() has returned or raised
        self._cut = False
        self._over = False
        self.rank = 0
        self._link = ThreadedLink(
            boot.coordinator, messages.WorkerHello(worker=worker, pid=os.getpid()), on_message=self._on_message,
            on_lost=self._on_lost, beat=lambda: messages.Beat(step=self._step),
            beat_seconds=boot.job.elastic.heartbeat_timeout.seconds / 5)

    def open(self) -> None:
        """Connect to the coordinator. Raises EnvironmentNotReady."""
        self._link.open()

    def close(self) -> None:
        self._link.close()

    def finish(self, message: messages.Message) -> None:
        """Send the last word and wait until it is out."""
        self._over = True
        self._link.flush(message)

    def ask_stop(self, number: int) -> None:
        """This worker is to stop; the others learn of it with the next step."""
        self._stop = self._stop or number

    # Session -------------------------------------------------------------------------------------------
    def enter(self, outline: Mapping[str, Any]) -> worlds.World:
        self._link.post(messages.Ready(outline=dict(outline)))
        try:
            seat = self._seats.get(timeout=self._boot.job.launch.start_timeout.seconds * 2)
        except queue.Empty:
            raise Stalled("the coordinator gave no seat in a round within twice launch.start_timeout") from None
        if seat is None:
            raise RoundBroken("the round was called off before it was formed")
        comm = self._boot.job.comm
        place = worlds.Place(
            rank=seat.rank, size=seat.size, local_rank=seat.local_rank, local_size=seat.local_size,
            cross_rank=seat.cross_rank, cross_size=seat.cross_size, host=seat.host,
            rendezvous_host=seat.rendezvous_host, rendezvous_port=seat.rendezvous_port,
            interface=seat.interface, timeout=comm.timeout.seconds, cycle_ms=comm.cycle_ms)
        self.rank = seat.rank
        self._before_forming = sockets.stream_sockets()
        try:
            world = rounds.form(place, self._boot.job.framework)
        finally:
            self._forming.set()
        with self._lock:
            self._world = world
            if self._cut:
                world.cut()
        return world

    def at(self, step: int) -> None:
        self._step = step

    def stop_signal(self) -> int:
        return self._stop

    def report(self, kind: str, step: int, epoch: int, values: Mapping[str, float]) -> None:
        self._link.post(messages.Report(kind=kind, step=step, epoch=epoch, values=dict(values)))

    def event(self, name: str, step: int, **values: Any) -> None:
        if self.rank == 0:
            self._link.post(messages.Report(kind="event", name=name, step=step, values=values))

    def salvage(self) -> bool:
        try:
            return self._verdict.get(timeout=self._boot.job.launch.stop_timeout.seconds)
        except queue.Empty:
            return False

    # The link's thread -----------------------------------------------------------------------------------
    def _on_message(self, message: messages.Message) -> None:
        if isinstance(message, messages.Seat):
            self._seats.put(message)
        elif isinstance(message, messages.Stop):
            self.ask_stop(message.signal)
        elif isinstance(message, messages.Cut):
            self._verdict.put(message.salvage)
            self._seats.put(None)
            with self._lock:
                self._cut = True
                if self._world is not None:
                    log.warning("the round is broken; %d sockets were cut", self._world.cut())
                elif self._before_forming is not None:
                    threading.Thread(target=self._cut_while_forming, daemon=True).start()

    def _cut_while_forming(self) -> None:
        """Cut whatever socket Horovod's init() opens until it gives up; it has handed none over yet."""
        assert self._before_forming is not None
        while not self._forming.wait(0.02):
            sockets.shut(sockets.stream_sockets() - self._before_forming)

    def _on_lost(self) -> None:
        if not self._over:
            # The coordinator is gone and the agent ends us in a moment; to go on alone would be wrong.
            log.error("the coordinator is gone")
            os._exit(int(ExitCode.LOST_WORKERS))


def _redirect_output(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    sys.stdout.reconfigure(line_buffering=True)
    faulthandler.enable()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)
