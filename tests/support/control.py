"""A real coordinator on the loopback, with agents and workers made by hand."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import Any, Callable, Iterator

from hvtrain.control import auth, messages as m
from hvtrain.control.causes import Cause
from hvtrain.control.client import Address, Link
from hvtrain.control.coordinator import Coordinator
from hvtrain.control.roster import Limits
from hvtrain.control.sums import Sums
from hvtrain.engine import roundsecret

TOKEN, DIGEST = auth.new_token(), "d" * 64
LIMITS = Limits(start=10.0, stop=5.0, heartbeat=5.0, replace=0.2, form=5.0, step=5.0)
HELLO = m.AgentHello(agent="host", host="host", slots=4, pid=1, version="0", job_digest=DIGEST)
SECONDS = 3.0
"""Nothing here takes so long."""


class Watcher:
    """An observer that remembers."""

    def __init__(self, fail: bool = False):
        self.events, self.measurements, self.summaries, self.outlines = [], [], [], []
        self.strengths: list[tuple[int, int]] = []
        self.account: dict[str, Any] = {}
        self.fail = fail

    def event(self, name, step=None, **values): self.events.append((name, step, values))
    def outline(self, outline): self.outlines.append(outline)
    def summary(self, summary): self.summaries.append(summary)
    def strength(self, round, size): self.strengths.append((round, size))
    def faults(self, account): self.account = account

    def measured(self, kind, step, epoch, values):
        if self.fail:
            raise OSError(28, "No space left on device")
        self.measurements.append((kind, step, values))

    def named(self, name: str) -> list[dict[str, Any]]:
        """The events of that name."""
        return [{"step": step, **values} for event, step, values in self.events if event == name]


class Worker:
    """A worker made by hand. ``seat`` is its latest one."""

    def __init__(self, name: str, link: Link, pid: int):
        self.name, self.link, self.pid = name, link, pid
        self.seat: m.Seat | None = None

    async def say(self, message: m.Message) -> None:
        await self.link.send(message)

    async def ready(self, step: int = -1, round: int = 0) -> None:
        outline = {} if round else {"steps": 5, "parameters": 7, "samples": 9}
        await self.say(m.Ready(outline=outline, step=step, round=round))

    async def seated(self) -> m.Seat:
        self.seat = await expect(self.link, m.Seat)
        return self.seat

    async def form(self, step: int = 0, **more) -> None:
        """Say that its round is connected; ``more``: source, known."""
        await self.say(m.Formed(round=self.seat.round, step=step, **more))

    async def train(self, step: int) -> None:
        """Commit the first step of its round."""
        await self.say(m.Stepped(round=self.seat.round, step=step))


class Job:
    """A running coordinator, with one agent ("host", so many ``slots``) and ``wanted`` workers after :meth:`start`."""

    def __init__(self, *, wanted: int = 2, limits: Limits = LIMITS, watcher: Watcher | None = None,
                 follow: bool = False, tls: bool = False, offer: Callable | None = None, slots: int = 4,
                 sums: Sums | None = None):
        self.watcher, self._limits, self._wanted, self._follow = watcher or Watcher(), limits, wanted, follow
        self._sums = sums
        self._tls, self._offer, self._hello = tls, offer, HELLO.model_copy(update={"slots": slots})
        self.workers: dict[str, Worker] = {}
        self.dropped: list[str] = []
        self._links: list[Link] = []

    async def __aenter__(self) -> Job:
        self.coordinator = Coordinator(
            wanted=self._wanted, limits=self._limits, token=TOKEN, host="127.0.0.1", interface="lo", job_digest=DIGEST,
            observer=self.watcher, follow=self._follow, on_drop=self.dropped.append, tls=self._tls, offer=self._offer,
            sums=self._sums)
        self.address = Address("127.0.0.1", await self.coordinator.start(), TOKEN, self._tls)
        self.client = Address("127.0.0.1", self.address.port, self.coordinator.client_token, self._tls)
        return self

    async def __aexit__(self, *_) -> None:
        await asyncio.gather(*(link.close() for link in self._links))
        await self.coordinator.close(Cause(0, "the test is over"))

    @property
    def state(self):
        return self.coordinator._state

    async def link(self, hello: m.Message, address: Address | None = None) -> Link:
        """A new connection."""
        link = Link(address or self.address)
        self._links.append(link)
        await link.open(hello)
        return link

    async def ask(self, *requests: m.Message) -> list[m.Message]:
        """What a person is answered."""
        link = await self.link(m.ClientHello(command="test"), self.client)
        answers = []
        for request in requests:
            await link.send(request)
            answers.append(await get(link))
        await link.close()
        return answers

    async def hire(self) -> Worker:
        """The agent is told to start a worker; it comes."""
        order = await expect(self.agent, m.Start)
        pid = 100 + int(order.worker[1:])
        worker = Worker(order.worker, await self.link(m.WorkerHello(worker=order.worker, pid=pid)), pid)
        self.workers[order.worker] = worker
        return worker

    async def start(self) -> list[Worker]:
        """The agent and the workers come, form their first round, and train."""
        self.agent = await self.link(self._hello)
        workers = [await self.hire() for _ in range(self._wanted)]
        for worker in workers:
            await worker.ready()
        await self.train(workers, step=0)
        return workers

    async def train(self, workers: list[Worker], step: int) -> list[m.Seat]:
        """These workers get seats, form the round at ``step``, and commit a step."""
        seats = [await worker.seated() for worker in workers]
        for worker in workers:
            await worker.form(step)
        await until(lambda: self.state.round.status.value == "active")
        for worker in workers:
            await worker.train(step + 1)
        return seats

    async def exited(self, worker: Worker, *, code: int = 0, signal: int = 0) -> None:
        """The agent reports the end of a worker."""
        await self.agent.send(m.Exited(worker=worker.name, code=code, signal=signal))

    async def over(self) -> Cause:
        return await asyncio.wait_for(self.coordinator.wait(), SECONDS)

    async def finish(self, workers: list[Worker], step: int = 5, stopped: bool = False) -> Cause:
        """Let the job end well; returns the cause."""
        for worker in workers:
            await worker.say(m.Finished(step=step, stopped=stopped, summary={"steps": step} if worker.seat.rank == 0 else {}))
        for worker in workers:
            await expect(worker.link, m.Dismiss)
            await worker.say(m.Finished(step=step, stopped=stopped, left=True))
            await self.exited(worker)
        return await self.over()


def rendezvous(seat: m.Seat) -> str:
    """The address of a round's rendezvous, its secret path included."""
    path = roundsecret.path(auth.round_secret(TOKEN, seat.secret))
    return f"http://{seat.rendezvous_host}:{seat.rendezvous_port}/{path}"


async def get(link: Link) -> m.Message | None:
    return await asyncio.wait_for(link.receive(), SECONDS)


async def expect(link: Link, kind: type) -> Any:
    message = await get(link)
    assert isinstance(message, kind), message
    return message


@contextmanager
def frozen(link: Link) -> Iterator[None]:
    """This end of a connection takes nothing, and does not answer a good-bye."""
    transport = link._socket._response.connection.transport
    transport.pause_reading()
    try:
        yield
    finally:
        transport.abort()


async def until(true: Callable[[], Any]) -> Any:
    """Wait for a condition."""
    async def look():
        while not (found := true()):
            await asyncio.sleep(0.005)
        return found

    return await asyncio.wait_for(look(), SECONDS)


def run(scenario: Callable[[Job], Any], **kwargs) -> Any:
    """Play ``scenario(job)`` in a job; ``kwargs`` as for :class:`Job`."""
    async def play():
        async with Job(**kwargs) as job:
            return await scenario(job)

    return asyncio.run(asyncio.wait_for(play(), 20))
