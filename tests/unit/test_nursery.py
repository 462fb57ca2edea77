"""The agent's side of a warm process that ends before it has read what it was told."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import tempfile

import pytest

from hvtrain.config import Job
from hvtrain.control import messages, nursery, warmstart
from hvtrain.control.boot import Boot
from hvtrain.control.client import Address
from hvtrain.control.nursery import Nursery


class Short(warmstart.WarmProcess):
    """A process that is gone at once, while the agent's orders wait in its socket, or before they come."""

    def __init__(self, early: bool):
        ours, self.theirs = socket.socketpair()
        super().__init__(subprocess.Popen([sys.executable, "-S", "-c", "print('no such library', flush=True)"],
                                          stdout=subprocess.DEVNULL), ours, tempfile.TemporaryFile())
        self.process.wait()
        if early:
            self.theirs.close()

    def load(self, boot):
        super().load(boot)
        self.theirs.close()


@pytest.mark.parametrize("early", [False, True])
def test_a_warm_process_that_ends_while_it_imports_is_noticed(early, monkeypatch):
    """Its socket then says "connection reset" instead of "end"; the job waited for it for ever."""
    started, told = [], []

    async def tell(message):
        told.append(message)

    def start(*_):
        started.append(Short(early))
        return started[-1]

    monkeypatch.setattr(warmstart, "start", start)
    boot = Boot(job=Job.model_validate({"task": {"target": "a:B"}}), coordinator=Address("h", 1, "t"), module_dir=".",
                run_dir=".", threads=1)

    async def work():
        nest = Nursery(boot, start(), host="host", tell=tell)
        await nest.open()
        while not any(isinstance(message, messages.LoadFailed) for message in told):
            await asyncio.sleep(0.01)
        await nest.close()

    asyncio.run(asyncio.wait_for(work(), 60))
    assert len(started) == 1 + nursery.MAX_RESTARTS
    for warm in started:
        warm.noise.close()
