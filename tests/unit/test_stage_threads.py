"""The threads of stages end together, whatever ends one of them; nobody who insists has to wait for one that hangs."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from hvtrain.hybrid import workers
from hvtrain.hybrid.workers import Crew, Effort


@pytest.fixture(autouse=True)
def interruptible():
    """SIGINT means KeyboardInterrupt, also where tests run in the background of a script, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt_after(seconds: float) -> threading.Timer:
    """Ctrl-C for this process, after a while."""
    timer = threading.Timer(seconds, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT])
    timer.start()
    return timer


def test_a_failure_ends_all_and_the_threads_go_on_with_the_next_jobs():
    crew, effort, done = Crew(2), Effort(), []
    line = effort.line()

    def fails():
        raise ValueError("of stage 0")

    with pytest.raises(ValueError, match="of stage 0"):
        crew.run([fails, lambda: effort.get(line)], effort)
    crew.run([lambda: done.append(0), lambda: done.append(1)], Effort())
    assert sorted(done) == [0, 1]
    crew.close()


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_does_not_wait_for_a_stage_that_hangs(times, monkeypatch):
    """After one there is a moment for it to end; another one is enough."""
    monkeypatch.setattr(workers, "LAST_WAIT", 0.3 if times == 1 else 60.0)
    crew, hangs = Crew(2), threading.Event()
    timers = [interrupt_after(0.2 * (number + 1)) for number in range(times)]
    try:
        with pytest.raises(KeyboardInterrupt):
            crew.run([hangs.wait, lambda: None], Effort())
    finally:
        hangs.set()
        for timer in timers:
            timer.join()
        crew.close()


def test_a_stage_that_ends_after_ctrl_c_has_ended_when_it_is_raised():
    crew, ended = Crew(1), []
    timer = interrupt_after(0.2)

    def works():
        time.sleep(0.6)
        ended.append(True)

    with pytest.raises(KeyboardInterrupt):
        crew.run([works], Effort())
    assert ended
    timer.join()
    crew.close()
