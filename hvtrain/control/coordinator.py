"""The coordinator: feeds the membership machine with what agents and workers say, and does what it answers."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import Counter
from typing import Any, Awaitable, Callable

from hvtrain.control import auth, events, membership, messages, news, overview, starts
from hvtrain.control.causes import OBSERVED, Cause
from hvtrain.control.chronicle import Chronicle, Observer
from hvtrain.control.door import Door, Peer, WrongJob
from hvtrain.control.guests import Guests
from hvtrain.control.lastwords import LastWords
from hvtrain.control.meeting import Meeting
from hvtrain.control.roster import Limits, Phase, State
from hvtrain.control.sums import Sums
from hvtrain.errors import ExitCode, ProtocolError, UsageError

log = logging.getLogger(__name__)

LATE_SECONDS = 0.1
"""A deadline that is seen so much too late means that this process stood still."""


class Coordinator:
    """One per job. ``start`` opens the door, ``wait`` returns the cause of the job's end.

    Args:
        wanted: number of workers.
        follow: take every slot that agents offer instead, within the limits.
        host: address to listen on; nothing else can be reached.
        interface: name of the one that all workers are to use; "" for that by which each reaches the coordinator.
        job_digest: agents that were started with another job are refused.
        on_drop: called with the name of an agent that does not answer any more.
        port: to listen at; 0 for any that is free.
        tls: encrypt what is said to agents, workers and people.
        offer: see :class:`hvtrain.control.guests.Guests`.
        sums: what is settled of the run's; None for a run of which nothing is kept.
    """

    def __init__(self, *, wanted: int, limits: Limits, token: str, host: str, interface: str, job_digest: str,
                 observer: Observer, follow: bool = False, on_drop: Callable[[str], None] = lambda name: None,
                 port: int = 0, tls: bool = False,
                 offer: Callable[[messages.JobAsk, str, str], messages.JobGiven] | None = None,
                 sums: Sums | None = None):
        self.host, self.port = host, 0
        self.client_token = auth.new_token()
        self._digest, self._observer, self._on_drop = job_digest, observer, on_drop
        self._state = State(wanted=wanted, limits=limits, follow=follow, since=time.monotonic())
        self._chronicle = Chronicle(observer, time.monotonic)
        self._door = Door(self, address=host, token=token, client_token=self.client_token, port=port, tls=tls)
        self._guests = Guests(self._door.knows, offer)
        self._sums = sums or Sums()
        self._meeting = Meeting(host=host, interface=interface, token=token, sums=self._sums, company=lambda: {
            self._door.address(name) for name in overview.company(self._state)})
        self._words = LastWords(self.feed, lambda worker: self._pids.pop(worker, None))
        self._over: asyncio.Future[Cause] = asyncio.get_running_loop().create_future()
        self._inbox: asyncio.Queue[events.Event] = asyncio.Queue()
        self._pumping: asyncio.Task | None = None
        self._pids: dict[str, int] = {}
        self._agents: set[str] = set()
        self._arriving: Counter[str] = Counter()  # agents whose joining lies in the inbox
        self.before_close: Callable[[int], Awaitable[None]] | None = None
        self.takes_over = False  # from a coordinator that was lost, so even the first round goes on from what was kept
        self._clients = itertools.count()

    async def start(self) -> int:
        """Listen; returns the port."""
        self.port = await self._door.open()
        self._pumping = asyncio.create_task(self._pump())
        return self.port

    async def wait(self) -> Cause:
        """Block until the job is over."""
        return await asyncio.shield(self._over)

    def request_stop(self, signal: int) -> None:
        """A person asks all workers to stop after a checkpoint; a second request does not wait for one."""
        self.feed(events.StopRequested(signal, insist=True))

    def feed(self, event: events.Event) -> None:
        self._inbox.put_nowait(event)

    def members(self) -> list[dict[str, Any]]:
        """The present round's living members in rank order: worker, rank, pid, step and round."""
        found = [(self._state.workers[name], name) for name in self._state.round.members if name in self._state.workers]
        return [{"worker": name, "rank": worker.rank, "pid": self._pids.get(name, 0), "step": max(0, worker.step),
                 "round": self._state.round.number} for worker, name in found if worker.alive]

    async def signal(self, worker: str, number: int) -> None:
        """Send a signal to a worker, for fault plans."""
        await self._door.send(self._state.workers[worker].agent, messages.Kill(worker=worker, signal=number))

    def agents(self) -> tuple[str, ...]:
        """Names of the agents that are connected, also while the job is ending."""
        return tuple(self._agents)

    def note(self, event: str, **values: Any) -> None:
        """Have something written into the job's history, for instance what became of a host."""
        self._observer.event(event, **values)

    async def close(self, cause: Cause) -> None:
        """Tell the agents that the job is over, and stop listening; first of all comes what ``before_close`` does."""
        if self.before_close is not None:
            await self.before_close(int(cause.exit_code))
        self._chronicle.close()
        for name in list(self._state.agents):
            await self._door.send(name, messages.End(exit_code=int(cause.exit_code), reason=cause.reason))
        if self._pumping is not None:
            self._pumping.cancel()
        await self._meeting.end()
        await self._door.close()

    # The machine ---------------------------------------------------------------------------------------
    async def _pump(self) -> None:
        try:
            while self._state.phase is not Phase.OVER:
                due = membership.deadline(self._state)
                assert due is not None
                try:
                    event = await asyncio.wait_for(self._inbox.get(), max(0.0, due - time.monotonic()))
                except asyncio.TimeoutError:
                    await self._catch_up(due)
                    event = events.Tick()
                await self._take(event)
        except Exception as error:  # noqa: BLE001 - whatever it is, nobody must wait for this job any longer
            log.exception("the coordinator failed")
            if not self._over.done():
                self._over.set_result(Cause(ExitCode.ENVIRONMENT, f"the coordinator failed: {error!r}", salvage=False))

    async def _catch_up(self, due: float) -> None:
        """Hear what has come before anyone is judged by the clock.

        After this process itself stood still (Ctrl-Z, a slow disk) the workers' signs of life lie unread.
        """
        if time.monotonic() - due > LATE_SECONDS:
            await asyncio.sleep(LATE_SECONDS)
        for _ in range(self._inbox.qsize()):
            await self._take(self._inbox.get_nowait())

    async def _take(self, event: events.Event) -> None:
        if isinstance(event, events.AgentJoined):
            self._arriving[event.agent] -= 1
        self._state, actions = membership.step(self._state, event, time.monotonic())
        for action in actions:
            try:
                await self._carry_out(action)
            except OSError as error:
                log.error("could not carry out %s: %s", action, error)
                self.feed(events.JobFailed(Cause(ExitCode.ENVIRONMENT, f"the coordinator failed: {error}",
                                                 salvage=False)))

    async def _carry_out(self, action: events.Action) -> None:
        if isinstance(action, events.RenewLease):  # the most frequent of all, and no part of the job's history
            return await self._door.send(action.worker, messages.Heard(stamp=action.stamp))
        self._chronicle.action(action, self._state)
        if isinstance(action, events.StartWorker):
            await self._door.send(action.agent, messages.Start(
                worker=action.worker, rank=action.rank, local_rank=action.local_rank,
                round=self._state.round.number + 1, threads=self._sums.threads()))
        elif isinstance(action, events.FormRound):
            await self._form(action)
        elif isinstance(action, events.RoundActive):
            await self._meeting.end()
        elif isinstance(action, events.PauseRound):
            await self._tell(action.workers, messages.Pause(round=self._state.round.number))
        elif isinstance(action, events.TellStop):
            self._observer.event("stop_requested", signal=action.signal)
            await self._tell(action.workers, messages.Stop(signal=action.signal))
        elif isinstance(action, events.CutRound):
            self._meeting.call_off()
            await self._tell(action.workers, messages.Cut(round=action.round, reason=action.reason))
        elif isinstance(action, events.Dismiss):
            if self._state.phase is Phase.ENDING:
                self._meeting.call_off()
            for name in action.workers:
                await self._door.send(name, messages.Dismiss(salvage=name == action.salvager, reason=action.reason))
        elif isinstance(action, events.KillWorker):
            await self._door.send(action.agent, messages.Kill(worker=action.worker, stacks=action.stacks))
        elif isinstance(action, events.ReleaseAgent):
            await self._door.send(action.agent, messages.End(exit_code=0, reason="its workers have left the job"))
        elif isinstance(action, events.RefuseAgent):
            await self._door.send(action.agent, messages.Refused(reason=action.reason))
        elif isinstance(action, events.DropAgent) and not self._arriving[action.agent]:  # else it is back by now
            await self._door.drop(action.agent)
            self._pids = {name: pid for name, pid in self._pids.items() if name in self._state.workers
                          or name in self._state.agents or self._arriving[name]}
            self._agents.discard(action.agent)
            self._sums.shares.withdraw(action.agent)
            self._on_drop(action.agent)
        elif isinstance(action, events.EndJob) and not self._over.done():
            self._over.set_result(action.cause)

    async def _tell(self, workers: tuple[str, ...], message: messages.Message) -> None:
        await asyncio.gather(*(self._door.send(name, message) for name in workers))

    async def _form(self, action: events.FormRound) -> None:
        places = await self._meeting.begin(action, takes_over=self.takes_over)
        await asyncio.gather(*(self._door.send(action.members[seat.rank][0], seat) for seat in places))

    # Behind the door -----------------------------------------------------------------------------------
    def admit(self, hello: messages.Message, is_client: bool) -> Peer:
        """See :class:`hvtrain.control.door.Host`."""
        if is_client:
            return Peer("client", f"client {next(self._clients)}")
        if isinstance(hello, messages.JobAsk):
            return self._give(hello)
        if isinstance(hello, messages.AgentHello):
            starts.check(hello, self._digest)
            if self._door.knows(hello.agent):
                raise ProtocolError(f"an agent named {hello.agent!r} is there already")
            self._pids[hello.agent] = hello.pid
            self._agents.add(hello.agent)
            self._sums.shares.offer(hello.agent, hello.slots, hello.threads)
            if short := self._sums.shares.shortage(hello.host, hello.slots, hello.threads):
                self.note("few_cores", host=hello.host, text=short)
            self._arriving[hello.agent] += 1
            self.feed(events.AgentJoined(hello.agent, hello.host, hello.slots))
            return Peer("agent", hello.agent)
        if isinstance(hello, messages.WorkerHello):
            known = hello.worker in self._state.workers and self._pids.get(hello.worker, hello.pid) == hello.pid
            if not known or (self._door.knows(hello.worker) and not hello.again):
                raise ProtocolError(f"no worker {hello.worker!r} is expected")
            self._pids[hello.worker] = hello.pid
            self._words.opened(hello.worker)
            if hello.again:
                asyncio.get_running_loop().call_soon(lambda: asyncio.ensure_future(self._repeat(hello.worker)))
            return Peer("worker", hello.worker)
        raise ProtocolError(f"the first message was {type(hello).__name__}")

    def _give(self, asked: messages.JobAsk) -> Peer:
        """Say what the job is, to an agent that comes again with what it is given."""
        try:
            given = self._guests.give(asked)
        except UsageError as error:
            raise WrongJob(str(error)) from None
        guest = Peer("guest", f"guest {next(self._clients)}")
        asyncio.get_running_loop().call_soon(lambda: asyncio.ensure_future(self._door.send(guest.name, given)))
        return guest

    async def _repeat(self, name: str) -> None:
        """Tell a worker that was cut off for a while what it may have missed."""
        worker = self._state.workers.get(name)
        if worker is not None:
            for message in overview.standing_orders(self._state, worker):
                await self._door.send(name, message)

    def gone(self, peer: Peer) -> None:
        """See :class:`hvtrain.control.door.Host`. A worker without a connection is missed by its heartbeat."""
        if peer.kind == "agent":
            self._agents.discard(peer.name)
            self.feed(events.AgentLost(peer.name))
        elif peer.kind == "worker" and peer.name in self._state.workers:
            self._words.over(peer.name)

    def hear(self, peer: Peer, message: messages.Message) -> messages.Message | None:
        """See :class:`hvtrain.control.door.Host`."""
        allowed = {"agent": messages.FromAgent, "worker": messages.FromWorker, "client": messages.FromClient}
        if peer.kind == "guest" or not isinstance(message, allowed[peer.kind].__args__):
            raise ProtocolError(f"{peer.name} may not send {type(message).__name__}")
        try:
            if peer.kind == "client":
                return self._answer(message)
            self._words.heard(peer.name)
            worker = self._state.workers.get(message.worker if isinstance(message, messages.Exited) else peer.name)
            event = (news.of_agent(peer.name, worker, message, self._observer) if peer.kind == "agent" else
                     news.of_worker(peer.name, worker, message, self._chronicle, self._observer))
            if event is not None:
                self._words.take(event)
        except ProtocolError:
            raise
        except Exception as error:  # noqa: BLE001 - a full disk under the run directory, say: no fault of the sender
            log.exception("a message of %s could not be dealt with", peer.name)
            self.feed(events.JobFailed(Cause(
                ExitCode.ENVIRONMENT, f"what {peer.name} reported could not be kept: {error}", weight=OBSERVED)))
        return None

    def _answer(self, message: messages.Message) -> messages.Message | None:
        if isinstance(message, messages.Scale):
            accepted, text = overview.judge_scale(self._state, message.workers)
            if accepted:
                self.feed(events.ScaleRequested(message.workers))
            return messages.Answer(accepted=accepted, text=text)
        return overview.describe(self._state, self._pids) if isinstance(message, messages.Query) else None
