"""The rendezvous answers as Horovod's store expects, on one address only, within limits."""

from __future__ import annotations

import asyncio
import resource
import zlib

import aiohttp
import pytest

from hvtrain.control import rendezvous
from hvtrain.control.rendezvous import MAX_VALUE_BYTES, Rendezvous


def talk(scenario):
    async def run():
        store = Rendezvous("127.0.0.1")
        port = await store.start()
        try:
            async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
                return await scenario(http, store)
        finally:
            await store.close()

    return asyncio.run(asyncio.wait_for(run(), 10))


async def get(http, path):
    async with http.get(path) as answer:
        return answer.status, await answer.read()


async def put(http, path, data):
    async with http.put(path, data=data) as answer:
        return answer.status


def test_a_value_comes_back_byte_for_byte_and_scopes_are_apart():
    async def scenario(http, store):
        assert (await get(http, "/global/0"))[0] == 404
        value = bytes(range(256))
        assert await put(http, "/global/0", value) == 200
        assert await get(http, "/global/0") == (200, value)
        assert (await get(http, "/local_h/0"))[0] == 404
        assert await put(http, "/global/0", b"newer") == 409, "each member says its address once"
        assert (await get(http, "/global/0"))[1] != b"newer"

    talk(scenario)


def test_a_deleted_value_stays_for_those_who_still_look():
    async def scenario(http, store):
        await put(http, "/global/0", b"v")
        async with http.delete("/global/0") as answer:
            assert answer.status == 200
        assert await get(http, "/global/0") == (200, b"v")

    talk(scenario)


def test_limits(monkeypatch):
    monkeypatch.setattr(rendezvous, "MAX_BYTES", 130)  # two small values and what each costs to keep

    async def scenario(http, store):
        assert await put(http, "/s/large", b"x" * (MAX_VALUE_BYTES + 1)) == 413
        assert (await get(http, "/s/large"))[0] == 404
        assert [await put(http, f"/s/{n}", b"v") for n in range(3)] == [200, 200, 413]
        assert (await get(http, "/s/1"))[0] == 200

    talk(scenario)


def test_a_round_that_is_called_off_lets_nobody_wait():
    """A member that died before it put its address would be waited for until the time-out."""
    async def scenario(http, store):
        await put(http, "/global/0", b"v")
        assert (await get(http, "/global/1"))[0] == 404
        store.call_off()
        assert await get(http, "/global/0") == (200, b"v")
        assert await get(http, "/global/1") == (200, b"x")

    talk(scenario)


def test_a_compressed_value_is_kept_as_it_came(monkeypatch):
    """Unpacked, 64 KiB could be a bomb of 64 MiB."""
    bomb = zlib.compress(bytes(64 << 20), 9)

    async def scenario(http, store):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        async with http.put("/global/0", data=bomb, headers={"Content-Encoding": "deflate"}) as answer:
            assert answer.status == 200
        assert (await get(http, "/global/0"))[1] == bomb
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10  # KiB

    talk(scenario)


def test_only_addresses_that_are_admitted_are_heard(caplog):
    async def scenario():
        store = Rendezvous("127.0.0.1", lambda address: address == "127.0.0.7")
        port = await store.start()
        for source, heard in (("127.0.0.1", False), ("127.0.0.7", True)):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
            writer.write(b"GET /global/0 HTTP/1.0\r\n\r\n")
            try:
                assert (await asyncio.wait_for(reader.read(), 3) != b"") is heard
            except ConnectionError:
                assert not heard
            writer.close()
        await store.close()

    asyncio.run(scenario())
    assert "refused a connection to a round's rendezvous from 127.0.0.1" in caplog.text


@pytest.mark.parametrize("path", ["/", "/one", "/a/b/c", "/../etc/passwd"])
def test_other_paths_are_not_there(path):
    async def scenario(http, store):
        assert (await get(http, path))[0] == 404
        async with http.post("/a/b", data=b"x") as answer:
            assert answer.status == 405

    talk(scenario)


def test_only_the_given_address_listens_and_nothing_after_the_close():
    async def scenario():
        store = Rendezvous("127.0.0.1")
        port = await store.start()
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.2", port)
        await store.close()
        await store.close()
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", port)

    asyncio.run(scenario())
