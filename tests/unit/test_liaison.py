"""What horovodrun's elastic driver is told, by whom, and when; against a driver that judges as Horovod's does."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import pickle
import pickletools
import struct

import pytest

from hvtrain.control.client import Address
from hvtrain.launch import horovod_elastic as elastic
from hvtrain.launch import liaison as module
from hvtrain.launch.board import KEY, OPEN_VARIABLE, Board, Notice
from hvtrain.launch.drivernews import MOST, NEWS_SECONDS, DriverNews
from hvtrain.launch.kvstore import Store
from hvtrain.errors import EnvironmentNotReady
from tests.support.fake_driver import FakeDriver

ALL = {"a:0", "a:1", "b:0", "b:1"}
NOTICE = Notice(Address("127.0.0.1", 4711, "the token"), workers=4, start=2)


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(module, "GATHER_SECONDS", 0.05)
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.1)
    monkeypatch.setattr(module, "SETTLE_SECONDS", 0.3)
    for name, value in {"HOSTNAME": "a", "RANK": 0, "SIZE": 4, "LOCAL_RANK": 0, "LOCAL_SIZE": 2, "CROSS_RANK": 0,
                        "CROSS_SIZE": 2}.items():
        monkeypatch.setenv(f"HOROVOD_{name}", str(value))


class Job:
    """The first process's side: who is connected to the coordinator, and what the liaison has asked for."""

    def __init__(self, driver: FakeDriver, run_dir):
        self.driver, self.connected = driver, set(ALL)
        self.evicted: list[str] = []
        self.resigned = False
        self.store = Store("127.0.0.1", driver.port)
        self.board = Board(self.store, run_dir)
        self.liaison = module.Liaison(self.store, self.board, connected=lambda: set(self.connected),
                                      evict=self.evicted.append, resign=self._resign)

    def _resign(self) -> None:
        self.resigned = True

    async def until(self, condition, seconds: float = 3.0) -> None:
        for _ in range(int(seconds / 0.01)):
            if condition():
                return
            await asyncio.sleep(0.01)
        raise AssertionError("it did not come to that")


def scenario(run_dir, story, **hosts: int) -> None:
    async def play() -> None:
        async with FakeDriver(**(hosts or {"a": 2, "b": 2})) as driver:
            job = Job(driver, run_dir)
            await job.liaison.start(NOTICE, "lo")
            await asyncio.sleep(0.05)
            await story(job, driver)
            await job.liaison.close()
            assert driver.mistakes == []

    asyncio.run(asyncio.wait_for(play(), 15))


def test_a_lost_host_is_made_up_for(tmp_path):
    async def story(job, driver):
        driver.die("b:0", "b:1")
        job.connected -= {"b:0"}  # the two connections do not end in the same instant
        await asyncio.sleep(0.03)
        job.connected -= {"b:1"}
        await job.until(lambda: driver.books == 2 and KEY in driver.values)
        assert driver.book == ["a:0", "a:1"] and job.evicted == [] and not job.resigned
        await asyncio.sleep(0.2)
        assert driver.books == 2
        await job.liaison.settle(0)
        assert json.loads(driver.values[KEY]) == {"over": 0} and driver.books == 2

    scenario(tmp_path, story)


def test_a_host_that_is_left_keeps_its_processes_until_the_end(tmp_path):
    """The driver would end b:1 for the death of b:0."""
    async def story(job, driver):
        driver.die("b:0")
        job.connected -= {"b:0"}
        await asyncio.sleep(0.3)
        assert driver.books == 1 and set(driver.states) == {"b:0"}
        await job.liaison.settle(0)
        assert driver.book == ["a:0", "a:1"] and driver.states == {}

    scenario(tmp_path, story)


def test_hosts_come_and_go(tmp_path):
    async def story(job, driver):
        addresses, key = pickle.loads(base64.b64decode(driver.values["worker_addresses/a:0"]))  # ours, so harmless
        await knock(*addresses["lo"][0], key, b"...HostsUpdatedRequest...")
        driver.hosts["c"] = 1
        await job.until(lambda: driver.books == 2 and KEY in driver.values)
        assert "c:0" in driver.book and driver.states == {}
        job.connected.add("c:0")
        del driver.hosts["b"]
        await knock(*addresses["lo"][0], key, b"...HostsUpdatedRequest...")
        await job.until(lambda: job.evicted == ["b:0", "b:1"])
        job.connected -= {"b:0", "b:1"}
        await asyncio.sleep(0.2)
        assert driver.books == 3, "who was evicted is not lost"
        del driver.hosts["a"]
        await knock(*addresses["lo"][0], key, b"...HostsUpdatedRequest...")
        await job.until(lambda: job.resigned)
        await job.liaison.settle(144)
        assert json.loads(driver.values[KEY]) == {"handover": ["a:0", "a:1"]} and driver.states == {}

    scenario(tmp_path, story)


def test_the_end_waits_for_the_driver_and_speaks_for_those_it_has_not_missed(tmp_path):
    async def story(job, driver):
        job.connected -= {"b:0", "b:1"}
        await job.until(lambda: set(driver.states) == {"a:0", "a:1"})
        await job.liaison.settle(0)
        assert driver.books == 2 and driver.states == {"b:0": "READY", "b:1": "READY"}, "the others' SUCCESS ends it"

    scenario(tmp_path, story)


async def knock(host: str, port: int, key: bytes, body: bytes) -> bytes:
    """Say something to a registered address, as the driver does; returns the answer's body."""
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(hmac.new(key, body, hashlib.sha256).digest() + struct.pack("i", len(body)) + body)
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    if not answer:
        return b""
    assert hmac.compare_digest(answer[:32], hmac.new(key, answer[36:], hashlib.sha256).digest())
    return answer[36:]


class Bomb:
    """Unpickling it fails the test."""

    def __reduce__(self):
        return pytest.fail, ("unpickled",)


def test_news_are_taken_from_the_driver_alone():
    async def play():
        heard = []
        news = DriverNews(lambda: heard.append(1))
        await news.open("127.0.0.1")
        addresses, key = pickle.loads(base64.b64decode(news.registration("eth0")))
        (address,) = addresses["eth0"]
        assert await knock(*address, b"x" * 32, b"HostsUpdatedRequest") == b"" and not heard
        assert await knock(*address, key, b"something else") == b"" and not heard
        await knock(*address, key, pickle.dumps(Bomb()) + b"PingRequest")  # the key lies in an open store
        pong = await knock(*address, key, b"PingRequest")
        said = [argument for _, argument, _ in pickletools.genops(pong)]
        assert "horovod.runner.common.util.network PingResponse" in said and "worker notification service" in said
        thanks = await knock(*address, key, b"HostsUpdatedRequest")
        assert "horovod.runner.common.util.network AckResponse" in [a for _, a, _ in pickletools.genops(thanks)]
        assert heard == [1]
        for _ in range(5):  # recorded, and sent again: no nonce could tell; so it must do no harm
            await knock(*address, key, b"HostsUpdatedRequest")
        mute = [await asyncio.open_connection(*address) for _ in range(MOST + 5)]
        assert await knock(*address, key, b"PingRequest"), "many that say nothing do not keep the driver out"
        assert heard == [1]
        await asyncio.sleep(NEWS_SECONDS)
        assert heard == [1, 1], "news that follow each other quickly are told together, and none is lost"
        for _, writer in mute:
            writer.close()
        await news.close()

    asyncio.run(play())


def test_the_token_does_not_travel_through_the_store(tmp_path, monkeypatch):
    async def play():
        async with FakeDriver(a=1) as driver:
            board = Board(Store("127.0.0.1", driver.port), tmp_path)
            assert await board.read() is None
            await board.announce(NOTICE)
            assert await board.read() == NOTICE
            assert b"the token" not in driver.values[KEY]
            assert (tmp_path / ".token").stat().st_mode & 0o777 == 0o600
            for entry in (b"", b"[]", b"{", b'{"host": 1}', b'{"over": "x"}', driver.values[KEY].replace(b'"h', b'"j')):
                driver.values[KEY] = entry
                assert await board.read() is None, entry
            await board.announce(NOTICE)
            elsewhere = Board(Store("127.0.0.1", driver.port), tmp_path / "not shared")
            with pytest.raises(EnvironmentNotReady, match=f"all hosts share.*{OPEN_VARIABLE}=1"):
                await elsewhere.find(0.2)
            board.clear(Address("127.0.0.1", 4711, "another coordinator's"))
            assert (tmp_path / ".token").exists()
            board.clear(NOTICE.address)
            assert not (tmp_path / ".token").exists()
            monkeypatch.setenv(OPEN_VARIABLE, "1")
            open_board = Board(Store("127.0.0.1", driver.port), tmp_path / "not shared")
            await open_board.announce(NOTICE)
            assert await open_board.find(0.2) == NOTICE and b"the token" in driver.values[KEY]

    asyncio.run(play())


def test_who_leaves_while_the_job_goes_on_does_not_end_with_0(tmp_path):
    """For the driver the job would be done."""
    async def play():
        async with FakeDriver(a=1) as driver:
            board = Board(Store("127.0.0.1", driver.port), tmp_path)
            await board.announce(NOTICE)
            assert await elastic.verdict(0, board) == 143
            assert await elastic.verdict(4, board) == 4
            await board.announce_end(0)
            assert await elastic.verdict(0, board) == 0
            await board.announce_handover(["b:0"])
            assert await elastic.verdict(144, board) is None, "another process takes the job over"
            await board.announce_handover(["a:0"])
            assert await elastic.verdict(144, board) == 143

    asyncio.run(play())
