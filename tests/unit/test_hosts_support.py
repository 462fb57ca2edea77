"""The "hosts" that other tests stand on: they reach each other, can be cut off and powered off, and leave nothing."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from tests.support import hosts, requirements
from tests.support.hosts import NETNS, ROOT, Hosts
from tests.support.requirements import REQUIRED, need_edit, need_hosts


@pytest.fixture(scope="module")
def net():
    need_hosts()
    with Hosts(3) as made:
        yield made


def ssh(net: Hosts, there: str, *command: str, code: int | None = 0) -> str:
    patience = 5 if code == 0 else 1
    done = net.run("h1", ["ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={patience}", there, *command], code=code)
    return done.stdout.strip() if code == 0 else f"{done.returncode} {done.stderr}"


def test_plain_ssh_works_between_hosts_by_name_and_by_address(net):
    assert ssh(net, "h2", "hostname") == "h2"
    assert ssh(net, "h3-six", "hostname") == ssh(net, net.address("h3", 6), "hostname") == "h3"
    assert "Could not resolve" in ssh(net, "h9", "true", code=None)


def test_hosts_share_files_but_no_memory(net, tmp_path):
    (tmp_path / "file").write_text("shared")
    assert ssh(net, "h2", f"cat {tmp_path}/file; touch /dev/shm/hvtrain-test; ls /dev/shm") == "shared" + "hvtrain-test"
    assert net.run("h1", ["ls", "/dev/shm"]).stdout == ""
    net.cover("h2", tmp_path / "file", by="/etc/hostname")
    assert ssh(net, "h2", f"cat {tmp_path}/file") != "shared" == net.run("h1", ["cat", f"{tmp_path}/file"]).stdout


def test_partition_and_cable_cut_hosts_off_and_heal(net):
    net.partition(["h1", "h2"], ["h3"])
    net.cable("h2", up=False)
    assert "255" in ssh(net, "h3", "true", code=None)
    net.heal()
    net.cable("h2", up=True)
    assert ssh(net, "h3", "true") == ssh(net, "h2", "true") == ""
    net.rate("h3", "1mbit")
    assert "tbf" in hosts._do("tc", "-n", net.space("h3"), "qdisc")


def test_whatever_befell_the_network_can_be_mended(net):
    net.partition(["h1"], ["h2"])
    net.cable("h2", up=False)
    net.link("h2", up=False)
    net.rate("h3", "1mbit")
    net.mend()
    assert ssh(net, "h2-six", "true") == ssh(net, "h2", "true") == ""
    assert "tbf" not in hosts._do("tc", "-n", net.space("h3"), "qdisc")


def test_power_off_kills_every_process(net):
    sleeper = subprocess.Popen([*net.enter("h3"), "sleep", "100"])
    deadline = time.monotonic() + 5
    while sleeper.pid not in net.pids("h3") and time.monotonic() < deadline:  # it is on its way into the namespace
        time.sleep(0.02)
    assert len(net.pids("h3")) == 2 and sleeper.pid in net.pids("h3")
    assert net.kill("h3") == [sleeper.pid]
    assert sleeper.wait(5) == -9 and ssh(net, "h3", "true") == ""
    assert net.power_off("h3") and net.pids("h3") == []  # perhaps a connection that has just ended, too
    net.power_on("h3")
    assert ssh(net, "h3", "hostname") == "h3"


def test_nothing_outlives_a_maker_that_is_killed():
    need_hosts()
    maker = ("import os; from tests.support.hosts import Hosts; net = Hosts(1).__enter__(); "
             "print(net.space('h1'), net.pids('h1')[0], net._guard.pid, flush=True); os.kill(os.getpid(), 9)")
    done = subprocess.run([sys.executable, "-c", maker], cwd=ROOT, capture_output=True, text=True, timeout=20)
    space, sshd, guard = done.stdout.split()
    hosts._do("timeout", "5", "sh", "-c", f"while kill -0 {guard}; do sleep 0.02; done 2>&-")
    assert space not in hosts._do("ip", "netns", "list") and not (NETNS / space).exists()
    assert subprocess.run(["kill", "-0", sshd], capture_output=True).returncode != 0


@pytest.mark.parametrize("required, outcome", [("1", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_what_is_missing_fails_a_test_only_where_nothing_may_be_missing(required, outcome, monkeypatch):
    """A test that needs a newer engine was skipped wherever it ran, and so nobody saw that it never did."""
    monkeypatch.setenv(REQUIRED, required)
    monkeypatch.setattr(requirements, "installed_record", lambda: {"edits": ["proof"]})
    need_edit("proof")
    with pytest.raises(outcome, match="without the edit 'own-address'. Build it anew: hvtrain engine build"):
        need_edit("own-address")
