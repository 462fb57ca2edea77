"""The coordinator: feeds the membership machine with what agents and workers say, and does what it answers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from typing import Protocol

from aiohttp import WSMsgType, web

from hvtrain.control import auth, membership, messages
from hvtrain.control.causes import CERTAIN, ECHO, OBSERVED, Cause
from hvtrain.control.membership import Limits, Phase, State
from hvtrain.control.rendezvous import Rendezvous
from hvtrain.errors import ExitCode, ProtocolError

log = logging.getLogger(__name__)

AUTH_SECONDS = 10.0
"""A connection that has not proven itself by then is closed."""

LATE_SECONDS = 0.1
"""A deadline that is seen so much too late means that this process stood still."""


class Observer(Protocol):
    """Who is told what happens in the job: the run's reporter."""

    def event(self, name: str, step: int | None = None, **values) -> None: ...
    def outline(self, outline: dict) -> None: ...
    def measured(self, kind: str, step: int, epoch: int, values: dict) -> None: ...
    def summary(self, summary: dict) -> None: ...


class Coordinator:
    """One per job. ``start`` opens the door, ``wait`` returns the cause of the job's end.

    Args:
        wanted: number of workers.
        host: address to listen on; nothing else can be reached.
        interface: name of the network interface that gloo is to use.
        job_digest: agents that were started with another job are refused.
    """

    def __init__(self, *, wanted: int, limits: Limits, token: str, host: str, interface: str, job_digest: str,
                 observer: Observer):
        self.host, self.interface, self.port = host, interface, 0
        self._token, self._digest, self._observer = token, job_digest, observer
        self._state = State(wanted=wanted, limits=limits, since=time.monotonic())
        self._links: dict[str, web.WebSocketResponse] = {}  # by agent or worker name
        self._rendezvous: Rendezvous | None = None
        self._runner: web.AppRunner | None = None
        self._over: asyncio.Future[Cause] = asyncio.get_running_loop().create_future()
        self._inbox: asyncio.Queue[membership.Event] = asyncio.Queue()
        self._tasks: list[asyncio.Task] = []

    async def start(self) -> int:
        """Listen; returns the port."""
        app = web.Application()
        app.router.add_get("/ws", self._connection)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.host, 0)
        await site.start()
        self.port = self._runner.addresses[0][1]
        self._tasks = [asyncio.create_task(self._pump())]
        return self.port

    async def wait(self) -> Cause:
        """Block until the job is over."""
        return await asyncio.shield(self._over)

    def request_stop(self, signal: int) -> None:
        """A person asks all workers to stop after a checkpoint; a second request does not wait for one."""
        self.feed(membership.StopRequested(signal, insist=True))

    def feed(self, event: membership.Event) -> None:
        self._inbox.put_nowait(event)

    async def close(self, cause: Cause) -> None:
        """Tell the agents that the job is over, and stop listening."""
        for name in list(self._state.agents):
            await self._send(name, messages.End(exit_code=int(cause.exit_code), reason=cause.reason))
        for task in self._tasks:
            task.cancel()
        if self._rendezvous is not None:
            await self._rendezvous.close()
        if self._runner is not None:
            await self._runner.cleanup()

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
                    event = membership.Tick()
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

    async def _take(self, event: membership.Event) -> None:
        self._state, actions = membership.step(self._state, event, time.monotonic())
        for action in actions:
            try:
                await self._carry_out(action)
            except OSError as error:
                log.error("could not carry out %s: %s", action, error)
                self.feed(membership.JobFailed(Cause(ExitCode.ENVIRONMENT, f"the coordinator failed: {error}",
                                                     salvage=False)))

    async def _carry_out(self, action: membership.Action) -> None:
        if isinstance(action, membership.StartWorker):
            await self._send(action.agent, messages.Start(worker=action.worker, rank=action.rank,
                                                           local_rank=action.local_rank))
        elif isinstance(action, membership.FormRound):
            await self._form(action)
        elif isinstance(action, membership.TellStop):
            self._observer.event("stop_requested", signal=action.signal)
            for name in action.workers:
                await self._send(name, messages.Stop(signal=action.signal))
        elif isinstance(action, membership.CutRound):
            if self._rendezvous is not None:
                self._rendezvous.call_off()
            for name in action.workers:
                await self._send(name, messages.Cut(salvage=name == action.salvager))
        elif isinstance(action, membership.KillWorker):
            await self._send(action.agent, messages.Kill(worker=action.worker))
        elif isinstance(action, membership.EndJob) and not self._over.done():
            self._over.set_result(action.cause)

    async def _form(self, action: membership.FormRound) -> None:
        if self._rendezvous is not None:
            await self._rendezvous.close()
        self._rendezvous = Rendezvous(self.host)
        port = await self._rendezvous.start()
        for seat in seats(action, rendezvous=(self.host, port), interface=self.interface):
            await self._send(action.members[seat.rank][0], seat)
        self._observer.event("round", round=action.round, size=len(action.members))

    # The door ------------------------------------------------------------------------------------------
    async def _connection(self, request: web.Request) -> web.WebSocketResponse:
        link = web.WebSocketResponse(max_msg_size=messages.MAX_BYTES, heartbeat=None)
        await link.prepare(request)
        name, is_agent = "", False
        try:
            nonce = auth.challenge()
            await link.send_str(nonce)
            text = await link.receive_str(timeout=AUTH_SECONDS)
            if not auth.proves(self._token, nonce, text):
                raise ProtocolError("it does not know the job's token")
            hello = messages.decode_inbound(await link.receive_str(timeout=AUTH_SECONDS))
            name, is_agent = self._admit(hello, link)
            async for raw in link:
                if raw.type is not WSMsgType.TEXT:
                    raise ProtocolError(f"a {raw.type.name} frame came where text was expected")
                self._hear(name, is_agent, messages.decode_inbound(raw.data))
        except (ProtocolError, TypeError, asyncio.TimeoutError) as error:
            log.warning("refused a connection from %s: %s", request.remote, error or "no proof in time")
            if isinstance(error, _WrongJob):
                await self._say(link, messages.End(exit_code=2, reason=str(error)))
        finally:
            if name and self._links.get(name) is link:
                del self._links[name]
                if is_agent:
                    self.feed(membership.AgentLost(name))
            await link.close()
        return link

    def _admit(self, hello: messages.Message, link: web.WebSocketResponse) -> tuple[str, bool]:
        if isinstance(hello, messages.AgentHello):
            if hello.job_digest != self._digest:
                raise _WrongJob(f"the agent on {hello.host} was started with another job file or other "
                                "settings than the coordinator; start all with the same command")
            if hello.agent in self._links:
                raise ProtocolError(f"an agent named {hello.agent!r} is there already")
            self._links[hello.agent] = link
            self.feed(membership.AgentJoined(hello.agent, hello.host, hello.slots))
            return hello.agent, True
        if isinstance(hello, messages.WorkerHello):
            if hello.worker not in self._state.workers or hello.worker in self._links:
                raise ProtocolError(f"no worker {hello.worker!r} is expected")
            self._links[hello.worker] = link
            return hello.worker, False
        raise ProtocolError(f"the first message was {type(hello).__name__}")

    def _hear(self, name: str, is_agent: bool, message: messages.Message) -> None:
        try:
            self._receive(name, is_agent, message)
        except ProtocolError:
            raise
        except Exception as error:  # noqa: BLE001 - a full disk under the run directory, say: no fault of the sender
            log.exception("a message of %s could not be dealt with", name)
            self.feed(membership.JobFailed(Cause(
                ExitCode.ENVIRONMENT, f"what {name} reported could not be kept: {error}", weight=OBSERVED)))

    def _receive(self, name: str, is_agent: bool, message: messages.Message) -> None:
        allowed = messages.FromAgent if is_agent else messages.FromWorker
        if not isinstance(message, allowed.__args__):
            raise ProtocolError(f"{name} may not send {type(message).__name__}")
        if isinstance(message, messages.Exited):
            worker = self._state.workers.get(message.worker)
            if worker is None or worker.agent != name:
                log.warning("ignored: %s speaks of %r, which is not its worker", name, message.worker)
                return
            self.feed(membership.WorkerExited(message.worker, message.code, message.signal))
        elif isinstance(message, messages.LoadFailed):
            self.feed(membership.JobFailed(Cause(message.exit_code, message.reason, message.traceback,
                                                 salvage=False)))
        elif isinstance(message, messages.Notice):
            self._observer.event(message.event, text=message.text)
        elif isinstance(message, messages.StopAsked):
            self.feed(membership.StopRequested(message.signal))
        elif isinstance(message, messages.Ready):
            self._observer.outline(message.outline)
            self.feed(membership.WorkerReady(name))
        elif isinstance(message, messages.Report):
            self._observe(message)
        elif isinstance(message, messages.Beat):
            self.feed(membership.WorkerBeat(name, message.step))
        elif isinstance(message, messages.Finished):
            self._observer.summary(message.summary)
            self.feed(membership.WorkerEnded(name, None, stopped=message.stopped))
        elif isinstance(message, messages.Failed):
            if message.saved_step is not None:
                self._observer.event("checkpoint", step=message.saved_step, text="saved by a survivor")
            rank = self._state.workers[name].rank
            self.feed(membership.WorkerEnded(name, Cause(
                message.exit_code, f"rank {rank}: {message.reason}", message.traceback,
                weight=ECHO if message.lost_peer else CERTAIN, step=message.step, rank=rank)))

    def _observe(self, message: messages.Report) -> None:
        if message.kind == "event":
            values = {key: value for key, value in message.values.items() if key not in ("name", "step")}
            self._observer.event(message.name, step=message.step, **values)
        else:
            self._observer.measured(message.kind, message.step, message.epoch, message.values)

    async def _send(self, name: str, message: messages.Message) -> None:
        link = self._links.get(name)
        if link is not None:
            await self._say(link, message)

    @staticmethod
    async def _say(link: web.WebSocketResponse, message: messages.Message) -> None:
        try:
            await asyncio.wait_for(link.send_str(messages.encode(message)), AUTH_SECONDS)
        except (ConnectionError, asyncio.TimeoutError, RuntimeError):
            pass  # its loss is noticed by the reader of this connection


class _WrongJob(ProtocolError):
    """An agent belongs to another job."""


def seats(action: membership.FormRound, *, rendezvous: tuple[str, int], interface: str) -> list[messages.Seat]:
    """The members' seats in rank order: rank counts all, local rank within a host, cross rank over hosts."""
    per_host = Counter(host for _, host in action.members)
    hosts = list(per_host)
    local_ranks = [sum(host == other for _, other in action.members[:rank])
                   for rank, (_, host) in enumerate(action.members)]
    result = []
    for rank, (_, host) in enumerate(action.members):
        local = local_ranks[rank]
        peers = [other for other in hosts if per_host[other] > local]  # hosts that have such a local rank
        result.append(messages.Seat(
            round=action.round, rank=rank, size=len(action.members), local_rank=local,
            local_size=per_host[host], cross_rank=peers.index(host), cross_size=len(peers), host=host,
            rendezvous_host=rendezvous[0], rendezvous_port=rendezvous[1], interface=interface))
    return result
