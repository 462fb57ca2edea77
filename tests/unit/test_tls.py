"""A man in the middle: with TLS he is found out before a word is said; without, he can listen and nothing else."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from hvtrain.control import auth, messages as m, tls
from hvtrain.control.client import Address, Link
from hvtrain.errors import EnvironmentNotReady, ExitCode, TokenRefused
from tests.support.control import HELLO, TOKEN, Job, expect, get, until


def play(scenario, **kwargs):
    async def run():
        async with Job(**kwargs) as job:
            return await scenario(job)

    return asyncio.run(asyncio.wait_for(run(), 20))


@asynccontextmanager
async def middle(job, change=lambda direction, number, text: [text], *, near: bool | None, far: bool):
    """Somebody between the two ends; gives his port.

    Args:
        change: what he makes of each message: a list of texts to hand on. ``direction``: "up" to the door, or "down".
        near, far: whether he speaks TLS to the client, and to the door.
    """
    context = tls.server_context()[0] if near else None
    heard = []

    async def meet(request):
        inner = web.WebSocketResponse(max_msg_size=1 << 22)
        await inner.prepare(request)
        scheme = "https" if far else "http"
        async with aiohttp.ClientSession() as http:
            async with http.ws_connect(f"{scheme}://127.0.0.1:{job.address.port}/ws", max_msg_size=1 << 22,
                                       ssl=tls.client_context() if far else True) as outer:
                async def hand_on(direction, source, target):
                    number = 0
                    async for raw in source:
                        heard.append(raw.data)
                        for text in change(direction, number, raw.data):
                            await target.send_str(text)
                        number += 1
                    await target.close()

                await asyncio.gather(hand_on("up", inner, outer), hand_on("down", outer, inner), return_exceptions=True)
        return inner

    app = web.Application()
    app.router.add_get("/ws", meet)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    try:
        yield runner.addresses[0][1], heard
    finally:
        await runner.cleanup()


def test_a_job_speaks_tls():
    async def scenario(job):
        assert job.address.tls
        workers = await job.start()
        (found,) = await job.ask(m.Query())
        assert isinstance(found, m.Overview)
        assert (await job.finish(workers)).exit_code == ExitCode.DONE

    play(scenario, tls=True)


def test_whether_a_door_speaks_tls_is_found_out():
    async def scenario(job):
        link = await job.link(HELLO, Address("127.0.0.1", job.address.port, TOKEN, tls=None))
        await until(lambda: "host" in job.state.agents)
        assert link.local_address == "127.0.0.1"

    play(scenario, tls=True)
    play(scenario, tls=False)


@pytest.mark.parametrize(("door", "client", "why"), [(True, False, "cannot be reached"), (False, True, "does not speak TLS")])
def test_who_expects_the_other_thing_says_so(door, client, why):
    async def scenario(job):
        with pytest.raises(EnvironmentNotReady, match=why):
            await Link(Address("127.0.0.1", job.address.port, TOKEN, tls=client)).open(HELLO)
        workers = await job.start()
        assert (await job.finish(workers)).exit_code == ExitCode.DONE

    play(scenario, tls=door)


@pytest.mark.parametrize("near", [True, False])
def test_a_man_in_the_middle_with_a_certificate_of_his_own_is_found_out(near, caplog):
    """Also one who talks the client out of TLS."""
    async def scenario(job):
        async with middle(job, near=near, far=True) as (port, heard):
            with pytest.raises(TokenRefused, match="token"):
                await Link(Address("127.0.0.1", port, TOKEN, tls=True if near else None)).open(HELLO)
            assert len(heard) >= 2 and not any("agent_hello" in str(text) for text in heard)
        assert not job.state.agents
        workers = await job.start()
        assert (await job.finish(workers)).exit_code == ExitCode.DONE

    play(scenario, tls=True)
    assert "somebody stands between it and this door" in caplog.text


def replaced(at, texts):
    return lambda direction, number, text: texts(text) if (direction, number) == at else [text]


FORGED = m.encode(m.End(exit_code=0, reason="go home"))


@pytest.mark.parametrize("change", [
    replaced(("down", 3), lambda text: [text[:auth.SEAL_CHARS] + FORGED]),  # changed
    replaced(("down", 3), lambda text: [FORGED]),  # without a seal
    replaced(("down", 3), lambda text: ["0" * auth.SEAL_CHARS + FORGED]),
    replaced(("down", 2), lambda text: []),  # dropped: the next one is out of order
    replaced(("down", 2), lambda text: [text, text]),  # repeated
], ids=["changed", "without a seal", "with a wrong seal", "dropped", "repeated"])
def test_without_tls_he_can_give_no_orders(change, caplog):
    """The agent's connection ends at the first false word; it is not obeyed."""
    async def scenario(job):
        async with middle(job, change, near=False, far=False) as (port, heard):
            link = Link(Address("127.0.0.1", port, TOKEN))
            await link.open(HELLO)
            said = []
            while (message := await get(link)) is not None:
                said.append(message)
            assert all(isinstance(message, m.Start) for message in said) and len(said) <= 2
            await link.close()

    play(scenario)
    assert "that the coordinator did not send" in caplog.text


@pytest.mark.parametrize("texts", [lambda text: [text, text], lambda text: [FORGED], lambda text: [text[:-2] + '9}']])
def test_nor_can_he_speak_for_a_worker(texts, caplog):
    async def scenario(job):
        job.agent = await job.link(HELLO)
        order = await expect(job.agent, m.Start)
        async with middle(job, replaced(("up", 2), texts), near=False, far=False) as (port, heard):
            link = Link(Address("127.0.0.1", port, TOKEN))
            await link.open(m.WorkerHello(worker=order.worker, pid=100))
            await link.send(m.Beat(step=1, ticks=1))
            await until(lambda: "did not send" in caplog.text)
            assert job.state.workers[order.worker].ticks <= 1
            await link.close()

    play(scenario)


def test_the_certificate_is_new_for_each_job_and_its_key_in_no_file():
    one, two = tls.server_context(), tls.server_context()
    assert one[1] != two[1] and len(one[1]) == 64
    assert one[0].minimum_version is ssl.TLSVersion.TLSv1_3
