"""The names of agents that come by themselves, and of the hosts they are on: each means one only.

Two machines may have the same name, and so may two containers. Workers of one host use its memory together, so such hosts
must be told apart; what tells them apart is the machine that runs and its shared memory (:func:`machine`).
"""

from __future__ import annotations

import os
import re
import socket
import time
from itertools import count
from pathlib import Path
from typing import Callable, Mapping

from hvtrain.control.messages import JobAsk, JobGiven
from hvtrain.errors import UsageError

PROMISED_SECONDS = 60.0
"""So long a name is kept for an agent that has been given it and has not come yet."""

OURS = re.compile(r"agent|[0-9]+")
"""The names of agents that launchers start, before the @: theirs must be free when they come."""


class Guests:
    """Answers them.

    Args:
        taken: whether an agent of that name is there.
        offer: what the job is, for an agent that asks, with its name and its host's; raises UsageError where it cannot take
            part. None: no agent can.
        hosts: the hosts that are known already, with their machines; this one, if None.
    """

    def __init__(self, taken: Callable[[str], bool], offer: Callable[[JobAsk, str, str], JobGiven] | None,
                 hosts: Mapping[str, str] | None = None, clock: Callable[[], float] = time.monotonic):
        self._taken, self._offer, self._clock = taken, offer, clock
        self._hosts = dict(hosts) if hosts is not None else {socket.gethostname(): machine()}
        self._promised: dict[str, float] = {}  # name -> until when

    def give(self, asked: JobAsk) -> JobGiven:
        """The job, and names for this agent and its host. Raises UsageError."""
        if self._offer is None:
            raise UsageError("this job takes no other agents than those that its launcher starts")
        host = self.host(asked.host, asked.machine)
        agent = self.agent(asked.agent, host)
        try:
            return self._offer(asked, agent, host)
        except UsageError:
            del self._promised[agent]
            raise

    def host(self, name: str, machine: str) -> str:
        """What the host ``name`` is called in this job: its name, with a number if that is another machine's already."""
        for number in count(1):
            called = name if number == 1 else f"{name}#{number}"
            if self._hosts.setdefault(called, machine) == machine:
                return called
        raise AssertionError

    def agent(self, wish: str, host: str) -> str:
        """A name for an agent on ``host``: the one that it wishes for, or one that is free.

        Raises:
            UsageError: that of its wish is taken, or one that a launcher gives.
        """
        if OURS.fullmatch(wish):
            raise UsageError(f"{wish!r} is what launchers call their own agents. Give this one another --name")
        now = self._clock()
        self._promised = {name: until for name, until in self._promised.items() if until > now and not self._taken(name)}
        for number in count(1):
            # No worker's name has an @ in it, whatever the host is called.
            name = f"{wish}@{host}" if wish else f"joined@{host}" if number == 1 else f"joined{number}@{host}"
            if not self._taken(name) and name not in self._promised:
                break
            if wish:
                raise UsageError(f"an agent named {wish!r} on {host} is in this job already. Leave --name out, or give "
                                 "another one")
        self._promised[name] = now + PROMISED_SECONDS
        return name


def machine() -> str:
    """Equal for processes that share memory: the same boot of the same machine, and the same /dev/shm."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    try:
        return f"{boot}/{os.stat('/dev/shm').st_dev}"
    except OSError:
        return boot
