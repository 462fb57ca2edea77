"""The secret of a round: where it goes, where it does not, and what the rendezvous makes of it."""

from __future__ import annotations

import asyncio
import os

import aiohttp
import pytest

from hvtrain.control import messages
from hvtrain.control.rendezvous import Rendezvous
from hvtrain.engine import roundsecret, world
from hvtrain.engine.world import Place

SECRET = "5e" * 32


def test_a_secret_is_new_each_time_and_its_path_does_not_show_it() -> None:
    first, second = roundsecret.draw(), roundsecret.draw()
    assert len(first) == 64 and first != second
    assert first not in roundsecret.path(first) and roundsecret.path(first) != roundsecret.path(second)


def test_the_engine_is_given_it_and_a_former_one_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    world.export(Place(secret=SECRET))
    assert os.environ[roundsecret.VARIABLE] == SECRET
    world.export(Place())
    assert roundsecret.VARIABLE not in os.environ


def test_it_does_not_get_into_a_log() -> None:
    seat = messages.Seat(round=1, rank=0, size=2, local_rank=0, local_size=2, cross_rank=0, cross_size=1, host="h",
                         rendezvous_host="10.0.0.1", rendezvous_port=9, interface="eth0", secret=SECRET)
    for holder in (Place(secret=SECRET), seat):
        assert SECRET not in repr(holder) and SECRET not in str(holder)


@pytest.mark.parametrize("record, unknown", [
    (None, False), ({"edits": ["cut"]}, True), ({}, True), ({"edits": ["proof", "secret-path"]}, False)])
def test_only_an_engine_of_ours_that_lacks_the_edit_goes_without(
        record: dict | None, unknown: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roundsecret, "installed_record", lambda: record)
    assert roundsecret.unknown_to_engine.__wrapped__() is unknown


@pytest.mark.parametrize("bare", [False, True])
def test_the_rendezvous_answers_those_who_know_the_path(bare: bool) -> None:
    async def scenario() -> None:
        store = Rendezvous("127.0.0.1", path=roundsecret.path(SECRET), bare=bare)
        port = await store.start()
        ours, theirs = (f"/{roundsecret.path(secret)}/global/0" for secret in (SECRET, "0" * 64))
        try:
            async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
                async def status(method: str, path: str, data: bytes | None = None) -> int:
                    async with http.request(method, path, data=data) as answer:
                        return answer.status

                assert await status("PUT", ours, b"mine") == 200 == await status("GET", ours)
                for path in (theirs, "/x/global/0", f"/{SECRET}/global/0"):
                    assert await status("PUT", path, b"a stranger's") == 403 == await status("GET", path)
                assert await status("GET", "/global/0") == (200 if bare else 404)
                assert await status("PUT", "/global/1", b"x") == (200 if bare else 404)
                assert await status("GET", ours + "/more") == 404
        finally:
            await store.close()

    asyncio.run(asyncio.wait_for(scenario(), 10))
