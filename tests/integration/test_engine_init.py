"""The engine's edits at work, with real processes: survivors of a dead peer raise, and can form the next round."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Callable

import pytest

from engine_members import Member, warm
from engine_store import Store

pytestmark = [pytest.mark.timeout(240)]
FRAMEWORKS = ["torch", "tensorflow"]


def init(ranks: list[Member], store: Store, **env: str) -> None:
    begun = [rank.send("init", env=store.env(number, len(ranks), **env)) for number, rank in enumerate(ranks)]
    for rank, number in zip(ranks, begun):
        assert rank.answer(number).get("value") == len(ranks)


def check_sum(ranks: list[Member]) -> None:
    begun = [rank.send("add", value=float(number + 1)) for number, rank in enumerate(ranks)]
    for rank, number in zip(ranks, begun):
        assert rank.answer(number).get("value") == sum(range(1, len(ranks) + 1))


def shut_down(ranks: list[Member], seconds: float) -> None:
    begun = [rank.send("shutdown") for rank in ranks]
    for rank, number in zip(ranks, begun):
        assert rank.answer(number, seconds).get("value") is False


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_survivors_go_on(framework: str, fork: Callable, store: Callable[[], Store]) -> None:
    first, second, dies_in_init, dies_at_work = fork(4, framework)
    survivors = [first, second]
    empty = first.do("numbers")["files"]

    # A peer is killed inside init(): it has published its address, the others cannot have connected to it yet.
    broken = store()
    begun = [first.send("init", env=broken.env(0, 3))]
    dies_in_init.send("init", env=broken.env(2, 3))
    broken.wait_for("/global/0", "/global/2")
    dies_in_init.signal(signal.SIGKILL)
    broken.values["/global/2"] = b"x"  # no address: who reads it raises, instead of waiting for 60 s
    begun.append(second.send("init", env=broken.env(1, 3)))
    for rank, number in zip(survivors, begun):
        answer = rank.answer(number)
        assert answer.get("error") == "ValueError" and "initialization failed" in answer["text"]

    # They init() again, directly, in the same process, and the sums are right.
    init(survivors, store())
    check_sum(survivors)
    shut_down(survivors, 20)

    # The coordinator of a round is killed at work: nobody is aborted, nobody waits for the 60 s.
    init([dies_at_work, *survivors], store())
    begun = [rank.send("add", value=1.0, count=200_000, times=1_000_000) for rank in (dies_at_work, *survivors)]
    first.waits(begun[1], 0.5)
    dies_at_work.signal(signal.SIGKILL)
    for rank, number in zip(survivors, begun[1:]):
        assert rank.answer(number, 10).get("error") is not None
    shut_down(survivors, 10)
    if framework == "torch":  # TensorFlow has files of its own
        assert first.do("numbers")["files"] == empty, "shutdown() must close the sockets of the round"
    init(survivors, store())
    check_sum(survivors)


def test_the_idle_wait_changes_no_result_and_saves_time(fork: Callable, store: Callable[[], Store]) -> None:
    ranks = fork(2)
    init(ranks, store(), HVTRAIN_IDLE_CYCLE_MS="200")
    for _ in range(20):
        check_sum(ranks)
    begun = [rank.send("sleep", seconds=1.0) for rank in ranks]
    for rank, number in zip(ranks, begun):
        assert rank.answer(number)["value"] < 0.05  # processor seconds; the 1 ms loop takes about 0.1
    check_sum(ranks)
    shut_down(ranks, 2.0)

    # One rank alone asks for shutdown while the other one idles: at most the idle limit later it is through.
    init(ranks, store(), HVTRAIN_IDLE_CYCLE_MS="200")
    shut_down(ranks[:1], 3.0)


def test_a_round_uses_the_interface_it_was_given() -> None:
    warm("torch")
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
    assert json.loads(done.stdout) == [["10.77.0.1"], ["10.77.0.1"]]
