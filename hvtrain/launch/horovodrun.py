"""Under ``horovodrun -np N hvtrain run ...``: each of the N processes is an agent with one slot.

The first hosts the coordinator and tells the others where it is through the key-value server that horovodrun
runs anyway and whose address it gives to every process.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import urllib.error
import urllib.request

from hvtrain import failure
from hvtrain.control.agent import Agent
from hvtrain.control.causes import Cause
from hvtrain.control.client import Address
from hvtrain.control.coordinator import Coordinator
from hvtrain.control.events import JobFailed
from hvtrain.control.warmstart import WarmProcess
from hvtrain.errors import EnvironmentNotReady
from hvtrain.launch.joblaunch import JobLaunch, coordinate

KEY = "hvtrain/coordinator"
POLL_SECONDS = 0.05


def is_parent() -> bool:
    """Whether this process was started by horovodrun."""
    return "HOROVOD_RANK" in os.environ and "HOROVOD_GLOO_RENDEZVOUS_PORT" in os.environ


def world_size() -> int:
    return int(os.environ["HOROVOD_SIZE"])


def rank() -> int:
    return int(os.environ["HOROVOD_RANK"])


def interface() -> str | None:
    """The interface that horovodrun has chosen, if it named one."""
    return os.environ.get("HOROVOD_GLOO_IFACE") or None


async def run(launch: JobLaunch, warm: WarmProcess) -> int:
    """Be this process's agent, and the coordinator as well if this is the first; returns the exit code."""
    if rank() != 0:
        address = await _find(launch.job.launch.start_timeout.seconds)
        return await _serve(launch, warm, address)
    agents: list[asyncio.Task] = []

    async def start(address: Address, coordinator: Coordinator) -> None:
        agents.append(asyncio.create_task(_serve(launch, warm, address)))
        agents[0].add_done_callback(lambda task: _report(task, coordinator))
        await asyncio.to_thread(_put, json.dumps({"host": address.host, "port": address.port, "token": address.token}))

    code = await coordinate(launch, start)
    await asyncio.gather(*agents, return_exceptions=True)
    return code


def _report(agent: asyncio.Task, coordinator: Coordinator) -> None:
    """This process's own agent has ended; if by an exception, the job must not wait for it."""
    if not agent.cancelled() and agent.exception() is not None:
        account = failure.account(agent.exception())
        coordinator.feed(JobFailed(Cause(account.exit_code, account.reason, account.traceback, salvage=False)))


async def _serve(launch: JobLaunch, warm: WarmProcess, address: Address) -> int:
    here = int(os.environ.get("HOROVOD_LOCAL_SIZE", "1"))
    host = os.environ.get("HOROVOD_HOSTNAME", "localhost")
    agent = Agent(launch.boot(address, here), warm, name=f"{rank():04d}@{host}", host=host, slots=1,
                  job_digest=launch.digest)
    code = await agent.run()
    if code and rank() != 0:
        print(f"hvtrain: {agent.reason}", file=sys.stderr)
    return code


async def _find(seconds: float) -> Address:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while loop.time() < deadline:
        text = await asyncio.to_thread(_get)
        if text is not None:
            return Address(**json.loads(text))
        await asyncio.sleep(POLL_SECONDS)
    raise EnvironmentNotReady(f"the first process did not announce the job's coordinator within launch.start_timeout "
                              f"({seconds:g} s); its own output says why.")


def _url() -> str:
    host, port = os.environ["HOROVOD_GLOO_RENDEZVOUS_ADDR"], os.environ["HOROVOD_GLOO_RENDEZVOUS_PORT"]
    return f"http://[{host}]:{port}/{KEY}" if ":" in host else f"http://{host}:{port}/{KEY}"


# A proxy from the environment must not stand between processes of one job.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _put(value: str) -> None:
    request = urllib.request.Request(_url(), data=value.encode(), method="PUT")
    _opener.open(request, timeout=10).close()


def _get() -> str | None:
    try:
        with _opener.open(_url(), timeout=10) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise
