"""A worker's session over the coordinator: it gives seats, is told what happens, and says when a round is broken."""

from __future__ import annotations

import logging
import os
import queue
import signal
import threading
import time
from contextlib import contextmanager
from typing import Any, Iterator, Mapping

from hvtrain import probe
from hvtrain.control import auth, messages
from hvtrain.control.boot import Boot
from hvtrain.control.client import ThreadedLink
from hvtrain.control.lease import Lease
from hvtrain.control.ownaddress import place_on
from hvtrain.engine import rounds
from hvtrain.engine import world as worlds
from hvtrain.errors import Dismissed, RoundBroken, WorkersLost
from hvtrain.session import Cuttable, QuietSession

log = logging.getLogger(__name__)

RECEIVED_BYTES = 1 << 20
"""So much of a state that is being received counts as one thing got done."""

LOOK_SECONDS = 0.5
"""How often a worker that waits for a seat looks whether the coordinator is still there."""


class RemoteSession(QuietSession):
    """One worker's tie to its job; the link's thread hears the coordinator while the main thread trains."""

    def __init__(self, boot: Boot, worker: str):
        elastic = boot.job.elastic
        self._boot = boot
        self.elastic, self.token = elastic.enabled, boot.coordinator.token
        self.round, self.rank, self.size, self.fresh = 0, 0, 1, True
        self._inbox: queue.Queue[messages.Message] = queue.Queue()  # Seat, Dismiss, Cut: for the main thread
        self._lock = threading.Lock()
        self._cut_round = 0
        self._breakables: list[Cuttable] = []
        self._forming: rounds.Forming | None = None
        self._world: worlds.World | None = None
        self._dismiss: messages.Dismiss | None = None
        self._ready: messages.Ready | None = None  # said, and not yet answered by a seat
        self._lease = Lease(elastic.heartbeat_timeout.seconds)
        self._pause = 0
        self._stop = 0
        self._step = self._ticks = 0
        self._ticked, self._slowest = time.monotonic(), 0.0
        self._first_of_round = False
        self._over = self._orphan = False
        pid = os.getpid()
        self._link = ThreadedLink(
            boot.coordinator, lambda again: messages.WorkerHello(worker=worker, pid=pid, again=again),
            on_message=self._on_message, on_back=self._on_back, on_lost=self._on_lost, beat=self._beat,
            beat_seconds=elastic.heartbeat_timeout.seconds / 5, patience=elastic.coordinator_timeout.seconds,
            unacked=elastic.heartbeat_timeout.seconds)

    def open(self) -> None:
        """Connect to the coordinator. Raises EnvironmentNotReady."""
        self._link.open()
        self.address = self._link.local_address

    def close(self) -> None:
        self._over = True
        self._link.close()

    def finish(self, message: messages.Message) -> None:
        """Send the last word and wait until it is out."""
        self._over = True
        self._link.flush(message)

    def ask_stop(self, number: int) -> None:
        """This worker is to stop; the others learn of it with the next step."""
        self._stop = self._stop or number

    def leave(self) -> None:
        """This worker wants to leave at the next step boundary."""
        self._link.post(messages.Leaving())

    @property
    def step(self) -> int:
        """Committed steps."""
        return self._step

    def cut(self) -> None:
        """Break this worker's connections to the others, as a failing network does."""
        with self._lock:
            self._cut_all()

    # Session: rounds -----------------------------------------------------------------------------------
    def enter(self, outline: Mapping[str, Any], step: int, reason: str) -> worlds.World:
        self._leave_world(broken=bool(reason) and reason != "pause")
        while True:
            ready = messages.Ready(outline=dict(outline) if not self.round else {}, step=step, round=self.round,
                                   reason=reason)
            self._ready = ready
            self._link.post(ready)
            seat = self._await_seat()
            self._ready = None
            try:
                world = self._form(seat)
            except RoundBroken as error:
                if not self.elastic:
                    raise
                log.warning("round %d could not be formed: %s", seat.round, error)
                reason = str(error)
                continue
            log.info("round %d: rank %d of %d", seat.round, seat.rank, seat.size)
            return world

    def _await_seat(self) -> messages.Seat:
        while True:
            if self._dismiss is not None:
                raise Dismissed(self._dismiss.reason or "not needed any more", self._dismiss.salvage)
            if self._orphan:
                raise WorkersLost("the coordinator cannot be reached any more (elastic.coordinator_timeout)")
            try:
                message = self._inbox.get(timeout=LOOK_SECONDS)
            except queue.Empty:
                continue
            if isinstance(message, messages.Seat):
                return message

    def _form(self, seat: messages.Seat) -> worlds.World:
        comm = self._boot.job.comm
        interface, address = place_on(seat.interface, self.address)
        forming = rounds.Forming(worlds.Place(
            rank=seat.rank, size=seat.size, local_rank=seat.local_rank, local_size=seat.local_size,
            cross_rank=seat.cross_rank, cross_size=seat.cross_size, host=seat.host,
            rendezvous_host=seat.rendezvous_host, rendezvous_port=seat.rendezvous_port, interface=interface,
            address=address, timeout=comm.timeout.seconds, cycle_ms=comm.cycle_ms,
            shared_memory=comm.shared_memory and not (seat.apart and comm.codec == "none"),
            secret=auth.round_secret(self.token, seat.secret)), self._boot.job.framework)
        with self._lock:
            self.round, self.rank, self.size, self.fresh = seat.round, seat.rank, seat.size, seat.fresh
            self.first, self.job_id = seat.first, seat.job
            self._first_of_round, self._slowest = True, 0.0
            self._forming = forming
            if self._cut_round >= seat.round or self._dismiss is not None:
                forming.abandon()
        probe.reached("forming")
        try:
            world = forming.run()
        except RoundBroken:
            with self._lock:
                self._forming = None
            raise
        self._world = world
        self.tick()
        self._slowest = 0.0
        return world

    def _leave_world(self, broken: bool) -> None:
        with self._lock:
            world, self._world, self._forming = self._world, None, None
        if world is not None:
            if broken:
                world.cut()  # a collective operation may still be under way in the background
            world.close()

    def formed(self, step: int, *, source: str, known: int, received: int, seconds: Mapping[str, float]) -> None:
        self._step = step
        self.tick()
        self._link.post(messages.Formed(round=self.round, step=step, source=source, known=known,
                                        received_bytes=received, seconds=dict(seconds)))

    @contextmanager
    def breakable(self, what: Cuttable) -> Iterator[Any]:
        with self._lock:
            self._breakables.append(what)
            broken = self._cut_round >= self.round
        if broken:
            what.cut()
        try:
            yield what
        finally:
            with self._lock:
                self._breakables.remove(what)

    def retire(self) -> None:
        """The training is over for all, and this process goes on alone; the others may have ended already."""
        self._leave_world(broken=True)

    def conclude(self, step: int, stopped: bool, summary: Mapping[str, Any]) -> bool:
        self._link.post(messages.Finished(step=step, stopped=stopped, summary=dict(summary) if self.rank == 0 else {}))
        while self._dismiss is None and not self._orphan:
            if self._cut_round >= self.round:
                return False
            try:
                self._inbox.get(timeout=LOOK_SECONDS)
            except queue.Empty:
                continue
        return self._dismiss is None or not self._dismiss.salvage

    # Session: training ---------------------------------------------------------------------------------
    def at(self, step: int) -> None:
        self._step = step
        self.tick()
        if self._first_of_round:
            self._first_of_round = False
            self._link.post(messages.Stepped(round=self.round, step=step))

    def tick(self) -> None:
        now = time.monotonic()
        self._ticks += 1
        self._slowest = max(self._slowest, now - self._ticked)
        self._ticked = now

    def await_lease(self) -> None:
        if self._lease.valid:
            return
        log.warning("step %d waits: the coordinator is not heard; it may be going on without this worker", self._step + 1)
        self._link.post(self._beat())  # it may be this process that has stood still
        if not self._lease.wait(lambda: self._cut_round >= self.round or self._dismiss is not None or self._orphan):
            raise RoundBroken("the round has ended while the coordinator was not heard")
        log.warning("step %d goes on: the coordinator is heard again, and the round has not ended", self._step + 1)

    def pause_asked(self) -> bool:
        return self._pause == self.round

    def stop_signal(self) -> int:
        return self._stop

    def report(self, kind: str, step: int, epoch: int, values: Mapping[str, float]) -> None:
        self._link.post(messages.Report(kind=kind, step=step, epoch=epoch, values=dict(values)))

    def event(self, name: str, step: int, **values: Any) -> None:
        if self.rank == 0:
            self._link.post(messages.Report(kind="event", name=name, step=step, values=values))

    def salvage(self) -> bool:
        """Not elastic: the coordinator says who saves, once it knows what has happened."""
        try:
            self._await_seat()
        except Dismissed as error:
            return error.salvage
        except WorkersLost:
            return self.rank == 0
        return False

    # The link's thread -----------------------------------------------------------------------------------
    def _beat(self) -> messages.Message:
        slowest, self._slowest = self._slowest, 0.0
        waiting = bool(getattr(self._world, "waiting", False))
        with self._lock:  # a state that is being received is progress as well
            received = sum(getattr(what, "received", 0) for what in self._breakables)
        return messages.Beat(step=self._step, ticks=self._ticks + received // RECEIVED_BYTES, waiting=waiting,
                             slowest=slowest, stamp=self._lease.stamp())

    def _on_message(self, message: messages.Message) -> None:
        if isinstance(message, messages.Heard):
            if self._lease.renew(message.stamp):
                self._ticked = time.monotonic()  # all have waited; no step was that slow
        elif isinstance(message, messages.Seat):
            self._inbox.put(message)
        elif isinstance(message, messages.Stop):
            self.ask_stop(message.signal)
        elif isinstance(message, messages.Pause):
            self._pause = message.round
        elif isinstance(message, (messages.Cut, messages.Dismiss)):
            with self._lock:
                if isinstance(message, messages.Dismiss):
                    self._dismiss = message
                    self._cut_all()
                elif message.round >= self.round:
                    self._cut_round = message.round
                    log.warning("round %d is broken: %s", message.round, message.reason)
                    self._cut_all()
            self._inbox.put(message)
            self._lease.wake()

    def _cut_all(self) -> None:
        for what in self._breakables:
            what.cut()
        if self._forming is not None:
            self._forming.abandon()

    def _on_back(self) -> None:
        log.warning("the connection to the coordinator was lost and is back")
        self.address = self._link.local_address or self.address
        if self._ready is not None:
            self._link.post(self._ready)

    def _on_lost(self) -> None:
        if not self._over:
            log.error("the coordinator is gone: saving a checkpoint and stopping")
            self._orphan = True
            self.ask_stop(signal.SIGTERM)
            self._lease.wake()
            time.sleep(self._lease.left)  # so long all can still agree on a last step; then who waits for it is freed
            with self._lock:
                self._cut_round = max(self._cut_round, self.round)
                self._cut_all()
