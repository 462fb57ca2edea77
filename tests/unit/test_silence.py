"""A network that drops packets is noticed by the kernel, on both ends of each connection to the coordinator."""

from __future__ import annotations

import asyncio
import socket

import pytest

from hvtrain.control import silence
from hvtrain.control.client import Link
from hvtrain.control.door import SILENT_SECONDS
from tests.support.control import HELLO, run

pytestmark = pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux alone has TCP_USER_TIMEOUT")


def option(sock, name):
    return sock.getsockopt(socket.IPPROTO_TCP, name)


@pytest.mark.parametrize("seconds,milliseconds,idle", [(5.0, 5000, 2), (60.0, 60000, 20), (0.2, 200, 1)])
def test_what_a_connection_is_told(seconds, milliseconds, idle):
    with socket.socket() as sock:
        silence.notice(sock, seconds)
        assert option(sock, socket.TCP_USER_TIMEOUT) == milliseconds
        assert option(sock, socket.TCP_KEEPIDLE) == option(sock, socket.TCP_KEEPINTVL) == idle
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1


def test_what_is_no_tcp_connection_is_left_alone():
    one, other = socket.socketpair()
    silence.notice(one, 5.0)
    silence.notice(None, 5.0)
    one.close(), other.close()
    closed = socket.socket()
    closed.close()
    silence.notice(closed, 5.0)


def test_both_ends_of_a_connection_to_the_coordinator():
    async def scenario(job):
        link = Link(job.address, patience=30.0, unacked=5.0)
        await link.open(HELLO)
        try:
            assert option(link._socket.get_extra_info("socket"), socket.TCP_USER_TIMEOUT) == 5000
            while not job.coordinator._door.knows(HELLO.agent):
                await asyncio.sleep(0.005)
            line = job.coordinator._door._lines[HELLO.agent]
            assert option(line._transport.get_extra_info("socket"), socket.TCP_USER_TIMEOUT) == 1000 * SILENT_SECONDS
        finally:
            await link.close()

    run(scenario)
