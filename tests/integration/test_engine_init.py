"""The engine's edits at work, with real processes: survivors of a dead peer raise, and can form the next round."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Callable, Iterator

import pytest

from engine_ranks import Rank, Store

pytestmark = [pytest.mark.timeout(240)]
START = 120.0  # seconds until a process has imported its framework, on a busy machine
FRAMEWORKS = ["torch", "tensorflow"]


def need(framework: str) -> None:
    from hvtrain.engine.info import engine_info

    if importlib.util.find_spec(framework) is None:
        pytest.fail(f"{framework} is not installed, and 'make test' installs it: nothing would be tested here")
    info = engine_info()
    assert framework in info.usable, f"{info.problems} Mend it with: {info.remedy}"


@pytest.fixture
def start() -> Iterator[Callable[..., list[Rank]]]:
    """Starts processes and ends all of them after the test."""
    everyone: list[Rank] = []

    def start_ranks(framework: str, count: int) -> list[Rank]:
        need(framework)
        everyone.extend(Rank(framework) for _ in range(count))
        for rank in everyone:
            assert rank.answer(START) == {"value": "ready"}
        return list(everyone)

    yield start_ranks
    for rank in everyone:
        rank.kill()


@pytest.fixture
def store() -> Iterator[Callable[[], Store]]:
    stores: list[Store] = []

    def make() -> Store:
        stores.append(Store())
        return stores[-1]

    yield make
    for each in stores:
        each.close()


def init(ranks: list[Rank], store: Store, **env: str) -> None:
    for number, rank in enumerate(ranks):
        rank.send("init", env=store.env(number, len(ranks), **env))
    for rank in ranks:
        assert rank.answer(30).get("value") == len(ranks)


def check_sum(ranks: list[Rank]) -> None:
    for number, rank in enumerate(ranks):
        rank.send("reduce", value=float(number + 1))
    for rank in ranks:
        assert rank.answer(30).get("value") == sum(range(1, len(ranks) + 1))


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_survivors_go_on(framework: str, start: Callable, store: Callable[[], Store]) -> None:
    first, second, dies_in_init, dies_at_work = start(framework, 4)
    survivors = [first, second]

    # A peer is killed inside init(): it has published its address, the others cannot have connected to it yet.
    broken = store()
    first.send("init", env=broken.env(0, 3))
    dies_in_init.send("init", env=broken.env(2, 3))
    broken.wait_for("/global/0", "/global/2")
    os.kill(dies_in_init.process.pid, signal.SIGKILL)
    assert dies_in_init.process.wait(10) == -signal.SIGKILL
    broken.values["/global/2"] = b"x"  # no address: who reads it raises, instead of waiting for 60 s
    second.send("init", env=broken.env(1, 3))
    for rank in survivors:
        answer = rank.answer(20)
        assert answer.get("error") == "ValueError" and "initialization failed" in answer["text"]

    # They init() again, directly, in the same process, and the sums are right.
    init(survivors, store())
    check_sum(survivors)
    for rank in survivors:
        rank.send("shutdown")
    for rank in survivors:
        assert rank.answer(20)["value"] is False

    # The coordinator of a round is killed at work: nobody is aborted, nobody waits for the 60 s.
    round_of_three = [dies_at_work, *survivors]
    init(round_of_three, store())
    for rank in round_of_three:
        rank.send("reduce-for-ever", count=200_000)
    with pytest.raises(AssertionError, match="no answer"):
        first.answer(1.0)
    os.kill(dies_at_work.process.pid, signal.SIGKILL)
    for rank in survivors:
        assert rank.answer(10).get("error") not in (None, "AssertionError")
    for rank in survivors:
        rank.send("shutdown")
    for rank in survivors:
        assert rank.answer(20)["seconds"] < 5
    for rank in survivors:
        rank.send("connections")
        assert rank.answer(10)["value"] == 0, "shutdown() must close the sockets of the round"
    init(survivors, store())
    check_sum(survivors)


def test_the_idle_wait_changes_no_result_and_saves_time(start: Callable, store: Callable[[], Store]) -> None:
    ranks = start("torch", 2)
    init(ranks, store(), HVTRAIN_IDLE_CYCLE_MS="200")
    for _ in range(20):
        check_sum(ranks)
    for rank in ranks:
        rank.send("sleep", seconds=1.0)
    for rank in ranks:
        assert rank.answer(10)["value"] < 0.05  # processor seconds; the 1 ms loop takes about 0.1
    check_sum(ranks)
    for rank in ranks:
        rank.send("shutdown")
    for rank in ranks:
        assert rank.answer(10)["seconds"] < 2.0

    # One rank alone asks for shutdown while the other one idles: at most the idle limit later it is through.
    init(ranks, store(), HVTRAIN_IDLE_CYCLE_MS="200")
    ranks[0].send("shutdown")
    assert ranks[0].answer(10)["seconds"] < 3.0


def test_a_round_uses_the_interface_it_was_given() -> None:
    need("torch")
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        pytest.skip("needs unshare (util-linux) and ip (iproute2)")
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    if subprocess.run(["unshare", *user, "--net", "true"], capture_output=True).returncode != 0:
        pytest.skip("this user may not create network namespaces")
    done = subprocess.run(["unshare", *user, "--net", sys.executable,
                           str(Path(__file__).with_name("engine_interface.py"))],
                          stdout=subprocess.PIPE, text=True, timeout=200)
    if done.returncode == 77:
        pytest.skip(f"no dummy network interface can be created here: {done.stdout.strip()}")
    assert done.returncode == 0
    results = json.loads(done.stdout)
    assert [result.get("value") for result in results] == [["10.77.0.1"], ["10.77.0.1"]], results
