"""Many kills: at random, and one after the other while the survivors are looked at for what they should have given back."""

from __future__ import annotations

import os
import signal
import time

import psutil
import pytest

from tests.support.runs import Run
from tests.support.whole_job import STEPS, WHOLE

PATIENT = ("elastic.replace_timeout=60s", "elastic.max_losses_per_hour=null", "elastic.max_failures_per_step=10")
"""Chance may strike in one step several times."""

FOREVER = ("train.epochs=null", "train.steps=1000000", "checkpoint.every=1000 steps", "eval.every=null", *PATIENT)


def test_killed_at_random(run, calm):
    """A random worker, every 0.4 s on average, also while the loss before is being recovered from."""
    run.run(*WHOLE, *PATIENT, "task.args.slow=0.05", workers=4, faults=[{"kind": "kill", "every": "0.4s", "during": "6s"}])
    strikes = run.struck()
    assert len(strikes) >= 6
    assert len(run.events("worker_lost")) == len(strikes)
    report = run.exact(STEPS)
    assert report.sizes == (4,) and report.repeated == sum(event["steps"] for event in run.events("rollback"))
    assert run.ending() == calm(4) and run.gone()


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_killed_at_random_for_three_minutes(run):
    """The job makes progress all the time: no two commits are further apart than a few recoveries take."""
    run.run("train.epochs=null", "train.steps=4000", "task.args.slow=0.05", "log.ledger=true", *PATIENT,
            "eval.every=200 steps", workers=4, faults=[{"kind": "kill", "every": "2s", "during": "3m"}], seconds=500)
    strikes = run.struck()
    assert len(strikes) >= 60
    report = run.exact(4000)
    assert report.sizes == (4,) and report.repeated == sum(event["steps"] for event in run.events("rollback"))
    times = [record["time"] for record in run.records("metrics.jsonl")]
    gap = max(later - former for former, later in zip(times, times[1:]))
    faults = run.status()["faults"]
    print(f"{len(strikes)} kills, longest time without a step {gap:.1f} s, {faults['repeated_steps']} steps repeated, "
          f"down {faults['seconds_down']} of {faults['seconds']} s, goodput {faults['goodput']:.1%}")
    assert gap < 15 and run.gone()


def test_ten_kills_leave_nothing_in_the_survivors(run):
    kill_again_and_again(run, 10)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_two_hundred_kills_leave_nothing_in_the_survivors(run):
    kill_again_and_again(run, 200)


def kill_again_and_again(run: Run, kills: int) -> None:
    """Kill the third worker time and again. The processes above it and the other two go through all of it."""
    run.start(*FOREVER, "task.args.slow=0.01", workers=3)
    run.until_step(5)
    early: dict[str, tuple[int, int, int]] = {}
    for count in range(1, kills + 1):
        os.kill(run.pid(f"hvtrain-w{count + 1}"), signal.SIGKILL)
        run.until(lambda: len(run.events("round")) > count, f"round {count + 1}")
        if count in (kills // 4, kills):
            run.until_step(run.last_step() + 20)  # everything about the last round is over by then
            late = holdings(run)
            early = early or late
    assert len(run.events("worker_lost")) == kills and {event["size"] for event in run.events("round")} == {3}
    assert late.keys() == early.keys() == {"launcher", "hvtrain-agent", "hvtrain-warm", "hvtrain-w0", "hvtrain-w1"}
    for name, (files, threads, memory) in late.items():
        print(f"{name}: {early[name]} -> {late[name]}")
        assert (files, threads) == early[name][:2], f"{name} holds on to files or threads"
        assert memory < early[name][2] + 4096, f"{name} grows"
    run.process.terminate()
    assert run.wait().returncode == 143 and run.gone()


def holdings(run: Run) -> dict[str, tuple[int, int, int]]:
    """By process: open files, threads, and memory in kB. Taken as the least of a while: a step holds some for a moment."""
    found: dict[str, tuple[int, int, int]] = {}
    for _ in range(10):
        for pid, name in run.pids().items():
            name = "launcher" if pid == run.process.pid else name
            if name.startswith("hvtrain-w") and name not in ("hvtrain-w0", "hvtrain-w1", "hvtrain-warm"):
                continue
            process = psutil.Process(pid)
            now = (process.num_fds(), process.num_threads(), process.memory_info().rss >> 10)
            found[name] = tuple(map(min, zip(now, found.get(name, now))))
        time.sleep(0.05)
    return found
