"""The launcher's process on a host, without ssh: what it says, whom it stays with, and how it ends."""

from __future__ import annotations

import asyncio
import os
import sys
import uuid

from hvtrain.launch import probing
from hvtrain.launch.hostlink import HostLink, Silent
from hvtrain.launch.probing import Listener, Target

SECONDS = 30.0


def hello(tmp_path, job: str) -> dict:
    (tmp_path / "task.py").write_text("x = 1\n")
    (tmp_path / "mark").touch()
    return {"job": job, "framework": "numpy", "cwd": str(tmp_path), "environment": {"TEST_FORWARDED": "yes"},
            "module_dir": str(tmp_path), "run_dir": str(tmp_path / "run"), "config": str(tmp_path / "none.yaml"),
            "mark": str(tmp_path / "mark")}


async def contact(tmp_path, job: str, shown: list[str]) -> tuple[HostLink, dict]:
    link = HostLink([sys.executable, "-m", "hvtrain.launch.hostmain"], shown.append)
    await link.open()
    return link, await link.ask("report", SECONDS, nonce=link.nonce, **hello(tmp_path, job))


def play(scenario):
    asyncio.run(asyncio.wait_for(scenario(), 3 * SECONDS))


def test_it_reports_and_ends_with_its_agent_when_the_launcher_goes(tmp_path):
    async def scenario():
        link, report = await contact(tmp_path, uuid.uuid4().hex, [])
        assert report["code"].keys() == {"task.py"} and report["config"] is None and report["sees_run"]
        assert report["versions"]["hvtrain"] and report["cores"] >= 1 and report["writes_run"] and not report["leftover"]
        children = _children(link._process.pid)
        assert children, "its agent imports the framework already"
        link._process.stdin.close()
        assert await asyncio.wait_for(link._process.wait(), SECONDS) == 0
        assert not any(os.path.exists(f"/proc/{pid}") for pid in children)
    play(scenario)


def test_there_is_one_agent_of_a_job_on_a_host_and_who_comes_later_takes_it_over(tmp_path):
    async def scenario():
        job, shown = uuid.uuid4().hex, []
        first, _ = await contact(tmp_path, job, shown)
        other, report = await contact(tmp_path, uuid.uuid4().hex, shown)
        assert not report["leftover"], "another job's"
        await other.close()
        second, report = await contact(tmp_path, job, shown)
        assert report["leftover"] and not _children(second._process.pid)
        agent = (await second.ask("started", SECONDS, op="watch"))["pid"]
        assert os.path.exists(f"/proc/{agent}")
        await second.ask("alive", SECONDS, op="ping")
        assert (await second.ask("ended", SECONDS, op="kill"))["code"] == -9
        assert await asyncio.wait_for(first._process.wait(), SECONDS) == 0
        assert await asyncio.wait_for(second._process.wait(), SECONDS) == 0
        await first.close()
        await second.close()
    play(scenario)


def test_nonsense_is_answered_and_an_end_is_told(tmp_path):
    async def scenario():
        link, _ = await contact(tmp_path, uuid.uuid4().hex, [])
        link._process.stdin.write(b"no json\n[]\n")
        assert (await link.hear())["op"] == (await link.hear())["op"] == "failed"
        link.cut()
        try:
            await asyncio.wait_for(link.hear(), SECONDS)
        except Silent as silent:
            assert silent.code == -9
        else:
            raise AssertionError("it was killed")
        await link.close()
    play(scenario)


def test_only_this_very_machine_counts_as_reached():
    async def scenario():
        listener = Listener()
        target, = await listener.open(["127.0.0.1"])
        stranger = Target(target.address, target.port, "0" * len(target.nonce))
        assert await probing.reach([target, stranger, Target("127.0.0.1", 1), Target(target.address, target.port)]) == [
            "127.0.0.1", None, None, "127.0.0.1"]
        listener.close()
        assert await probing.reach([target]) == [None]
    play(scenario)


def _children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]
