"""A handover ends at once when it is cut or its peer dies, and in time when its peer stands still."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time

import pytest

from hvtrain.engine.breaker import Breaker
from hvtrain.engine.handover import Fetch, fetch, wire
from hvtrain.errors import RoundBroken
from tests.support.handover import (  # noqa: F401 - fixtures among them
    BIG, BIG_STATE, GREETING, HOST, LONG, SOON, TOKEN, at_once, false_giver, giver_proof, groups, guest,
    nothing_is_left_open, offer, plain, pool,
)


def in_child(action):
    """A forked process that does ``action``; its pid."""
    pid = os.fork()
    if not pid:
        try:
            action()
        finally:
            os._exit(0)
    return pid


def struck(number, after):
    """Have this process send itself the signal when so many bytes of a handover are through."""
    real, done = wire.Views.advance, [0]

    def advance(self, count):
        real(self, count)
        done[0] += count
        if done[0] >= after:
            os.kill(os.getpid(), number)

    wire.Views.advance = advance


def end(pid):
    """SIGKILL, and how the process had ended: the signal's number, or SIGKILL by this."""
    os.kill(pid, signal.SIGKILL)
    return os.WTERMSIG(os.waitpid(pid, 0)[1])


def test_time_is_up_only_without_progress(pool):
    """Ten pauses of 0.15 s, at a limit of 0.6 s."""
    whole = b"".join(wire.encode(groups(10), {}))
    listener = socket.create_server((HOST, 0))

    def serve():
        with listener, listener.accept()[0] as sock:
            sock.sendall(GREETING)
            rest = giver_proof(sock.recv(4096)) + whole
            for start in range(0, len(rest), -(-len(rest) // 10)):
                time.sleep(0.15)
                sock.sendall(rest[start:start + -(-len(rest) // 10)])
            return sock.recv(1)

    done = pool.submit(serve)
    assert plain(fetch(listener.getsockname(), TOKEN, timeout=0.6)) == plain(groups(10))
    assert done.result(5) == wire.RECEIVED


def test_a_giver_that_never_serves(offer):
    with pytest.raises(RoundBroken, match="no progress.*receiving.*for 0.2 s"):
        fetch(offer.address, TOKEN, timeout=0.2)


def test_a_guest_that_reads_nothing(offer, pool):
    serving = pool.submit(offer.serve, 1, BIG_STATE, timeout=0.3)
    with guest(offer.address), pytest.raises(RoundBroken, match="no progress for 0.3 s"):
        serving.result(5)


# Broken out from another thread


def cut_after(seconds, thing):
    timer = threading.Timer(seconds, thing.cut)
    timer.start()
    return timer


def test_an_offer_is_cut_while_nobody_comes(offer):
    cut_after(0.1, offer)
    with at_once(), pytest.raises(RoundBroken):
        offer.serve(1, groups(), timeout=LONG)


def test_an_offer_is_cut_while_it_sends(offer, pool):
    serving = pool.submit(offer.serve, 1, BIG_STATE, timeout=LONG)
    with guest(offer.address):
        time.sleep(0.1)
        offer.cut()
        with at_once(), pytest.raises(RoundBroken):
            serving.result(SOON)


def test_an_offer_is_cut_while_it_waits_to_be_confirmed(offer, pool):
    serving = pool.submit(offer.serve, 1, {}, timeout=LONG)
    with guest(offer.address) as sock:
        assert sock.recv(1000)
        time.sleep(0.1)
        offer.cut()
        with at_once(), pytest.raises(RoundBroken):
            serving.result(SOON)


def test_a_cut_before_it_begins_counts(offer):
    offer.cut()
    with at_once(), pytest.raises(RoundBroken):
        offer.serve(1, groups(), timeout=LONG)
    receipt = Fetch(offer.address, TOKEN, timeout=LONG)
    receipt.cut()
    with at_once(), pytest.raises(RoundBroken):
        receipt.run()
    receipt.cut()


def test_a_fetch_is_cut_while_it_connects():
    with socket.socket() as full:
        full.bind((HOST, 0))
        full.listen(0)
        waiting = []
        for _ in range(4):  # once the queue is full, the kernel answers nobody
            waiting.append(socket.socket())
            waiting[-1].setblocking(False)
            waiting[-1].connect_ex(full.getsockname())
        receipt = Fetch(full.getsockname(), TOKEN, timeout=LONG)
        cut_after(0.1, receipt)
        with at_once(), pytest.raises(RoundBroken, match="outside"):
            receipt.run()
        for each in waiting:
            each.close()


def test_a_fetch_is_cut_while_it_waits_to_be_greeted(offer):
    receipt = Fetch(offer.address, TOKEN, timeout=LONG)
    cut_after(0.1, receipt)
    with at_once(), pytest.raises(RoundBroken):
        receipt.run()


def test_a_fetch_is_cut_in_the_middle(pool):
    whole = b"".join(wire.encode(BIG_STATE, {}))
    address, done = false_giver(pool, GREETING, lambda heard: giver_proof(heard) + whole[:BIG // 2], b"")
    receipt = Fetch(address, TOKEN, timeout=LONG)
    cut_after(0.3, receipt)
    with at_once(), pytest.raises(RoundBroken, match="outside"):
        receipt.run()
    assert done.exception(5) is None or isinstance(done.exception(), OSError)


def test_a_forked_copy_does_not_keep_a_cut_from_arriving():
    breaker = Breaker()
    pid = in_child(lambda: time.sleep(20))
    near, far = socket.socketpair()
    cut_after(0.1, breaker)
    with near, far, at_once(), pytest.raises(RoundBroken):
        breaker.wait(near, 1, time.monotonic() + LONG, "nothing")
    breaker.close()
    end(pid)


# Processes that die or stand still


@pytest.mark.parametrize("after", [1, 100, 400, BIG // 2, BIG])
def test_a_receiver_is_killed(offer, after):
    def receive():
        struck(signal.SIGKILL, after)
        fetch(offer.address, TOKEN, timeout=LONG)

    pid = in_child(receive)
    # Who dies before it has proven itself was never a receiver: then nobody came.
    with pytest.raises(RoundBroken, match="gone" if after > 80 else "have not come"):
        offer.serve(1, BIG_STATE, timeout=LONG if after > 80 else 0.5)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL


@pytest.mark.parametrize("after", [1, 400, BIG // 2])
def test_the_giver_is_killed(offer, after):
    def give():
        struck(signal.SIGKILL, after)
        offer.serve(1, BIG_STATE, timeout=LONG)

    pid = in_child(give)
    address = offer.address
    offer.close()  # the child's copy is the one that listens
    with at_once(), pytest.raises(RoundBroken, match="gone|closed"):
        fetch(address, TOKEN, timeout=LONG)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL


def test_a_receiver_is_stopped(offer):
    def receive():
        struck(signal.SIGSTOP, BIG // 2)
        fetch(offer.address, TOKEN, timeout=LONG)

    pid = in_child(receive)
    with pytest.raises(RoundBroken, match="no progress for 0.5 s"):
        offer.serve(1, BIG_STATE, timeout=0.5)
    assert os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1])
    end(pid)


def test_the_giver_is_stopped(offer):
    def give():
        struck(signal.SIGSTOP, BIG // 2)
        offer.serve(1, BIG_STATE, timeout=LONG)

    pid = in_child(give)
    with pytest.raises(RoundBroken, match="no progress.*for 0.5 s"):
        fetch(offer.address, TOKEN, timeout=0.5)
    assert os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1])
    end(pid)


def test_one_receiver_killed_is_said_though_the_other_is_well(offer, pool):
    def receive():
        struck(signal.SIGKILL, BIG // 2)
        fetch(offer.address, TOKEN, timeout=LONG)

    pid = in_child(receive)
    well = in_child(lambda: fetch(offer.address, TOKEN, timeout=LONG))
    with pytest.raises(RoundBroken, match="gone"):
        offer.serve(2, BIG_STATE, timeout=LONG)
    for each in (pid, well):
        os.waitpid(each, 0)
