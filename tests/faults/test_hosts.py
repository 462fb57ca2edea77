"""A job over several hosts (network namespaces with an sshd each): hosts that die, come back, are added and taken away."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

import hvtrain
from hvtrain.errors import ExitCode
from tests.support.hostrun import HostRun, named, workers

WHOLE = ("train.epochs=null", "eval.every=20 steps", "task.args.norm=true", "train.ema=0.9", "data.global_batch=33",
         "log.ledger=true", "launch.connect_timeout=5s")
ENDLESS = (*WHOLE, "train.steps=5000", "task.args.slow=0.1")
"""Stopped when all has happened, however slow the machine."""


@pytest.fixture
def job(tmp_path, net):
    run = HostRun(tmp_path, net)
    yield run
    run.kill_all()


def test_a_host_is_lost_comes_back_and_others_come_and_go_by_the_discovery_script(job, net):
    job.start_discovering("h1:1,h2:1,h3:1", *ENDLESS)
    job.until_step(5)
    killed = net.kill("h2")
    assert len(killed) >= 4, "an agent's keeper, the agent, its warm process and a worker were expected there"
    job.until_resize(2)
    assert job.events("worker_lost")[0]["host"].endswith("h2")
    job.until_resize(2, 3)
    job.name_hosts("h1:1,h2:1,h4:1")
    job.until(lambda: len(net.pids("h3")) == 1 and len(net.pids("h4")) > 4 and job.events("resize")[-1]["new"] == 3,
              "only its sshd runs on h3, and h4 has the third worker", 90.0)
    job.until_step(job.last_step() + 3)
    steps = job.stop()
    assert [event["host"] for event in job.events("host_left")] == ["h3"]
    assert [event["host"] for event in job.events("host_found")] == ["h4"]
    assert job.exact(steps).repeated == 0 and len(job.events("worker_lost")) == 1
    assert job.gone()


def test_all_that_is_wrong_with_hosts_is_said_in_one_table_before_training(job, net, tmp_path):
    """h1 is well, the others are not: each in another way."""
    etc, covered = net.etc("h1") / "ssh", tmp_path / "covered"
    known = (etc / "known_hosts").read_text()
    (etc / "known_hosts").write_text("".join(line + "\n" for line in known.splitlines() if not line.startswith("h2,")))
    with open(etc / "ssh_config", "a") as file:
        file.write("Host closed\n  HostName h2\n  Port 23\nHost asks\n  HostName h3\n  PubkeyAuthentication no\n")
    # On h3 and h4 other things lie at the same paths.
    covered.mkdir()
    package = Path(hvtrain.__file__)
    (covered / "init.py").write_text(package.read_text().replace(hvtrain.__version__, "0.0.9"))
    (covered / "tasks.py").write_text("# of last week\n")
    net.cover("h3", package, by=covered / "init.py")
    net.cover("h4", tmp_path / "tasks.py", by=covered / "tasks.py")
    try:
        done = job.start_on("h1:1,h2:1,h3:1,h4:1,h9:1,closed:1,asks:1,10.77.0.1:2", *WHOLE).wait()
    finally:
        (etc / "known_hosts").write_text(known)
        net.run("h3", ["umount", str(package)])
        net.run("h4", ["umount", str(tmp_path / "tasks.py")])
    assert done.returncode == ExitCode.ENVIRONMENT, job.logs()
    table = {line.split()[0]: line for line in done.stderr.splitlines()[2:]}
    assert "7 of 8 hosts cannot take part" in done.stderr and "h1" not in table
    for host, what, remedy in (
            ("h2", "host key is unknown", "ssh h2 "), ("h3", "hvtrain 0.0.9 instead of", "install the same hvtrain"),
            ("h4", "other code: tasks.py differs", "rsync -a"), ("h9", "no such name", "getent hosts h9"),
            ("closed", "nothing listens on its port 23", "--ssh-port"), ("asks", "without a password", "ssh-copy-id"),
            ("10.77.0.1", "same machine as h1", "h1:3")):
        assert what in table[host] and remedy in table[host], done.stderr
    assert not job.dir.exists() and job.gone()


def test_a_job_over_hosts_that_have_ipv6_alone(job, net):
    for name in ("h1", "h2"):
        net.run(name, ["ip", "-4", "addr", "flush", "dev", "eth0"])
    try:
        done = job.start_on("[fd77::1]:1,[fd77::2]:1", *WHOLE, "train.steps=10", "launch.interface=eth0").wait()
    finally:
        for name in ("h1", "h2"):
            net.link(name, up=True)  # with all its addresses
    assert done.returncode == 0 and "the coordinator is at fd77::1" in done.stdout, job.logs()
    assert job.exact(10).repeated == 0


def test_no_network_that_all_hosts_share(job, net):
    net.run("h1", ["ip", "link", "add", "lonely0", "type", "veth", "peer", "lonely1"])
    net.run("h1", ["sh", "-c", "ip addr add 10.88.0.1/24 dev lonely0; ip link set lonely0 up; ip link set lonely1 up"])
    try:
        done = job.start_on("h1:1,h2:1", *WHOLE, "launch.interface=lonely0").wait()
    finally:
        net.run("h1", ["ip", "link", "del", "lonely0"])
    assert done.returncode == ExitCode.ENVIRONMENT, job.logs()
    assert "h2" in done.stderr and "it reaches none of this machine's addresses: 10.88.0.1 (lonely0)" in done.stderr


def test_ctrl_c_while_a_host_does_not_answer(job, net):
    net.link("h3", up=False)
    try:
        job.start_on("h1:1,h2:1,h3:1", *WHOLE, "launch.connect_timeout=60s")
        job.until(lambda: "connecting" in job.said(), "it connects")
        job.process.send_signal(signal.SIGINT)
        done = job.wait(30)
    finally:
        net.link("h3", up=True)
    assert done.returncode == ExitCode.INTERRUPTED and "stopped before the job had begun" in done.stderr, job.logs()
    assert job.gone() and not job.dir.exists()


def test_a_new_host_that_one_of_the_others_does_not_reach_does_not_join_until_it_does(job, net):
    """It reaches the coordinator, so it joined; then no round could be formed with it, and after three the job ended."""
    net.run("h3", ["ip", "route", "add", "unreachable", f"{net.address('h2')}/32"])
    try:
        job.start_discovering("h1:1,h2:1", *ENDLESS)
        job.until_step(5)
        job.name_hosts("h1:1,h2:1,h3:1")
        trouble, = job.until(lambda: job.events("host_trouble"), "h3 is in trouble")
        assert trouble["host"] == "h3" and "the others do not reach it at 10.77.0.3" in trouble["text"]
        job.until_step(job.last_step() + 5)
        assert not job.events("resize") and not job.events("worker_lost")
    finally:
        net.run("h3", ["ip", "route", "del", "unreachable", f"{net.address('h2')}/32"])
    job.until_resize(3)
    assert job.exact(job.stop()).repeated == 0 and job.gone()


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_one_job_suffers_everything_and_no_bit_changes(job, net, tmp_path):
    """At 1 Gbit/s. Three workers, and always a slot for them: each loss is made up for, so that the size stays."""
    settings = (*ENDLESS, "elastic.replace_timeout=60s", "elastic.min_workers=3", "comm.shared_memory=false")
    for name in net.names:
        net.rate(name, "1gbit")
    job.start_discovering("h1:2,h2:1,h3:1", *settings, workers=3)
    job.until_step(5)
    first = job.busy()
    os.kill(workers(net.pids(first))[0], signal.SIGKILL)
    job.goes_on(first)
    second = job.busy()
    assert len(net.kill(second)) >= 4, "an agent's keeper, the agent, its warm process and a worker"
    job.goes_on(second)
    job.until_agents("h1", "h2", "h3")
    third = job.busy()
    net.link(third, up=False)
    job.goes_on(third)
    net.link(third, up=True)
    job.until_agents("h1", "h2", "h3")
    job.name_hosts("h1:2,h2:1,h3:1,h4:1")
    job.until_agents("h1", "h2", "h3", "h4")
    far = [job.busy(), next(name for name in ("h4", "h3") if name != job.busy())]
    net.partition([name for name in net.names if name not in far], far)
    job.goes_on(*far)
    net.heal()
    job.until_agents("h1", "h2", "h3", "h4")
    last = job.busy()
    net.kill(last)
    job.name_hosts(",".join(f"{name}:{2 if name == 'h1' else 1}" for name in net.names if name != last))
    job.goes_on(last)
    job.until_agents(*(name for name in net.names if name != last))
    steps = job.stop()
    assert not job.events("resize") and not job.events("rollback") and job.exact(steps).repeated == 0 and job.gone(30)
    calm = HostRun(tmp_path, net, "calm")
    calm.run(*settings, f"train.steps={steps}", "task.args.slow=0", workers=3)
    ended = {"evaluated": None, "best_step": None}  # the calm one evaluates at its end
    assert {**calm.ending(), **ended} == {**job.ending(), **ended}


@pytest.mark.soak
def test_spare_hosts_take_the_place_of_a_lost_one_and_no_bit_changes(job, net, tmp_path):
    """Two and two workers share memory; then two, one and one do not fit the order of their sums, and go without."""
    settings = (*WHOLE, "train.steps=150", "elastic.replace_timeout=60s", "elastic.min_workers=4")
    calm = HostRun(tmp_path, net, "calm")
    calm.run(*settings, workers=4)
    job.start_discovering("h1:2,h2:2", *settings, "task.args.slow=0.1", workers=4)
    job.until_step(5)
    job.name_hosts("h1:2,h2:2,h3:1,h4:1")
    job.until_agents("h1", "h2", "h3", "h4")
    assert len(workers(net.pids("h2"))) == 2
    net.kill("h2")
    job.name_hosts("h1:2,h3:1,h4:1")
    done = job.wait(150)
    assert done.returncode == 0, job.logs()
    assert not job.events("resize") and not job.events("rollback") and len(job.events("worker_lost")) == 2
    assert job.exact(150).repeated == 0 and job.ending() == calm.ending()


@pytest.mark.soak
def test_replicas_of_two_stages_over_hosts(job, net, tmp_path):
    settings = (*WHOLE, "train.steps=120", "elastic.replace_timeout=60s", "elastic.min_workers=2",
                "hybrid={stages: 2, microbatches: 4, split: [2, 2], devices: cpu}")
    calm = HostRun(tmp_path, net, "calm")
    calm.run(*settings, "comm.shared_memory=false", workers=2)
    job.start_on("h1:1,h2:1", *settings, "task.args.slow=0.1")
    job.until_step(10)
    assert len(net.kill("h2")) >= 4
    done = job.wait(150)
    assert done.returncode == 0, job.logs()
    assert not job.events("resize") and len(job.events("worker_lost")) == 1
    assert job.exact(120).repeated == 0 and job.ending() == calm.ending()


@pytest.mark.soak
def test_ssh_by_another_port_another_key_and_a_users_name_and_a_job_over_tls(job, net, tmp_path):
    key, etc = tmp_path / "key", net.etc("h1") / "ssh"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    net.run("h2", ["/usr/sbin/sshd", "-p", "2222", "-o", f"AuthorizedKeysFile={key}.pub"])
    name, host_key = next(line.split(" ", 1) for line in (etc / "known_hosts").read_text().splitlines() if "h2" in line)
    with open(etc / "known_hosts", "a") as file:
        file.write(f"[h2]:2222 {host_key}\n")
    options = (*ENDLESS, "launch.tls=true", "--ssh-port", "2222")
    done = job.start_on("h1:1,root@h2:1", *options).wait()
    assert done.returncode == ExitCode.ENVIRONMENT and "without a password" in done.stderr, "the usual key opens that door"
    job.start_on("h1:1,root@h2:1", *options, "--ssh-identity-file", str(key))
    job.until_step(5)
    assert len(net.kill("h2")) >= 4
    job.until_resize(1, 2)
    assert job.exact(job.stop()).repeated == 0 and job.gone()


@pytest.mark.soak
def test_a_lost_ssh_connection_is_no_lost_host(job, net):
    job.start_on("h1:1,h2:1", *ENDLESS)
    job.until_step(5)
    ways = named("ssh", net.pids("h1"))
    assert len(ways) == 1
    os.kill(ways[0], signal.SIGKILL)
    job.until_step(job.last_step() + 30)
    assert not job.events("worker_lost") and named("hvtrain-agent", net.pids("h2"))
    os.kill(named("hvtrain-agent", net.pids("h2"))[0], signal.SIGKILL)
    job.until_resize(1, 2)
    assert job.exact(job.stop()).repeated == 0 and job.gone()


@pytest.mark.soak
def test_a_cut_cable_is_noticed_and_the_host_is_back_when_it_is_mended(job, net):
    job.start_on("h1:1,h2:1,h3:1", *ENDLESS)
    job.until_step(5)
    net.link("h2", up=False)
    job.until_resize(2)
    net.link("h2", up=True)
    job.until_resize(2, 3)
    job.until_step(job.last_step() + 5)
    assert job.exact(job.stop()).repeated == 0 and job.gone(30)


@pytest.mark.soak
def test_a_launcher_that_is_killed_leaves_nothing_behind_on_any_host(job, net):
    job.start_on("h1:1,h2:1", *ENDLESS)
    job.until_step(15)
    job.process.kill()
    job.process.wait(10)
    assert job.gone(60)
    done = job.start_on("h1:1,h2:1", *WHOLE, "train.steps=60").wait(120)
    assert done.returncode == 0 and "resumed at step" in done.stdout, job.logs()
    assert job.exact(60)
