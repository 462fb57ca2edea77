"""Where the members of a round meet: a rendezvous of its own for each, and the seats that lead there."""

from __future__ import annotations

from dataclasses import replace
from typing import Callable

from hvtrain.checkpoint import fence
from hvtrain.control import auth, messages, seats
from hvtrain.control.events import FormRound
from hvtrain.control.rendezvous import Rendezvous
from hvtrain.control.sums import Sums
from hvtrain.engine import roundsecret


class Meeting:
    """That of the present round; there is none until :meth:`begin`, nor after :meth:`end`.

    Args:
        host: address to listen on.
        interface: name of the one that all workers are to use, "" for each one's own.
        token: the job's.
        sums: what is settled of them.
        company: the addresses that the members of the present round, and their agents, are connected from.
    """

    def __init__(self, *, host: str, interface: str, token: str, sums: Sums, company: Callable[[], set[str]]):
        self._host, self._interface, self._token, self._company = host, interface, token, company
        self._job, self._sums = fence.new_job(), sums
        self._rendezvous: Rendezvous | None = None
        self._addresses: set[str] = set()

    async def begin(self, action: FormRound, *, takes_over: bool) -> list[messages.Seat]:
        """Open the round's rendezvous; returns its members' seats in rank order. Raises OSError.

        ``takes_over``: the coordinator does from another one, so even the first round goes on from what was kept.
        """
        await self.end()
        nonce = roundsecret.draw()
        self._addresses = set()
        self._rendezvous = Rendezvous(self._host, self._admits, bare=roundsecret.unknown_to_engine(),
                                      path=roundsecret.path(auth.round_secret(self._token, nonce)))
        port = await self._rendezvous.start()
        first = action.fresh
        return seats.assign(replace(action, fresh=first and not takes_over), rendezvous=(self._host, port),
                            interface=self._interface, secret=nonce, first=first, job=self._job,
                            apart=self._sums.apart([host for _, host in action.members]))

    def call_off(self) -> None:
        """Whoever waits there for somebody is told that he will not come."""
        if self._rendezvous is not None:
            self._rendezvous.call_off()

    async def end(self) -> None:
        """All have met, or none is to wait there any more."""
        if self._rendezvous is not None:
            await self._rendezvous.close()
            self._rendezvous = None

    def _admits(self, address: str) -> bool:
        """Whether a member of the round is connected from there, or its agent."""
        if address not in self._addresses:  # or it comes back from elsewhere
            self._addresses = self._company()
        return address in self._addresses
