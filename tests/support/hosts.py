"""Several "hosts" on this machine: network namespaces on one switch, each with a name, addresses and an sshd of its own.

::

    with Hosts(4, rate="1gbit") as net:                  # h1 10.77.0.1 fd77::1, h2 10.77.0.2 fd77::2, ...
        net.run("h1", ["ssh", "h2", "hostname"])         # "h2": plain ssh works between them (h2-six: by IPv6 only)
        job.start(..., prefix=net.enter("h1", cwd))      # a Run (tests.support.runs) whose launcher is on h1
        net.kill("h2")                                   # SIGKILL to every process of h2 but its sshd; returns the pids
        net.link("h3", up=False)                         # h3's eth0 goes down: packets are dropped, nothing is reset
        net.cable("h3", up=False)                        # the same at the switch: h3 itself sees no carrier
        net.partition(["h1", "h2"], ["h3", "h4"])        # neither side hears the other; net.heal()
        net.power_off("h4"); net.power_on("h4")          # link down, then all processes killed, sshd too
        net.rate("h2", "10mbit")                         # a slow link, both ways
        net.mend()                                       # the network, not what was killed
        net.cover("h2", "/some/python", by="/tmp/fake")  # on h2 alone, this path is another file or directory

    h1 --eth0--port1--+
    h2 --eth0--port2--+-- br0  (of a namespace of its own)      partition: the ports of the other side move to br1
    h3 --eth0--port3--+

A host has its own /dev/shm and /run, and its own /etc/hosts and /etc/ssh (from /etc/netns); all other files are this
machine's, so a run directory is on a "shared disk", unless it lies in a directory given as ``private``. Variables TEST_* go
along with ssh. Nothing outlives the process that made it, even if that is killed: a guard waits for its end. Tests call
:func:`tests.support.requirements.need_hosts` first.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Sequence

SECONDS = 10.0
"""Nothing here takes so long."""

NETNS = Path("/etc/netns")
ROOT = Path(__file__).resolve().parents[2]
PREFIX = "hvt"
HOLDER = """hostname "$1"; shift
mount -t tmpfs tmpfs /dev/shm && mount -t tmpfs tmpfs /run && mkdir /run/sshd || exit 1
if [ -d /root/.ssh ]; then mount -t tmpfs tmpfs /root/.ssh; fi
for each in "$@"; do mount -t tmpfs tmpfs "$each" || exit 1; done
exec /usr/sbin/sshd -D -e
"""
SSHD = """Port 22
HostKey /etc/ssh/host_key
AuthorizedKeysFile /etc/ssh/client_key.pub
PermitRootLogin prohibit-password
PasswordAuthentication no
StrictModes no
UsePAM no
PrintMotd no
PidFile none
MaxStartups 100
AcceptEnv TEST_*
"""
SSH = """Host *
  IdentityFile /etc/ssh/client_key
  UserKnownHostsFile /etc/ssh/known_hosts
  GlobalKnownHostsFile /dev/null
  SendEnv TEST_*
"""


class Hosts:
    """``count`` hosts, named h1, h2, ...; made by ``with``, gone after it.

    Args:
        rate: of every host's link, both ways, as tc writes it ("1gbit"); None for as fast as it goes.
        private: directories that each host has for itself, empty at first.
    """

    def __init__(self, count: int, rate: str | None = None, private: Sequence[Path | str] = ()):
        self.names = [f"h{number}" for number in range(1, count + 1)]
        self._mark = f"{PREFIX}{os.getpid()}x{uuid.uuid4().hex[:4]}"
        self._rate, self._private = rate, [str(path) for path in private]
        self._switch = f"{self._mark}-switch"
        self._holders: dict[str, subprocess.Popen] = {}
        self._guard: subprocess.Popen | None = None

    # How they come and go ------------------------------------------------------------------------------
    def __enter__(self) -> Hosts:
        self._guard = subprocess.Popen([sys.executable, "-m", "tests.support.hosts", self._mark], cwd=ROOT,
                                       stdin=subprocess.PIPE, start_new_session=True)
        try:
            self._connect()
            self._configure()
            for name in self.names:
                self._start(name)
                if self._rate:
                    self.rate(name, self._rate)
            for name in self.names:
                self._await_ssh(name)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        assert self._guard is not None and self._guard.stdin is not None
        self._guard.stdin.close()
        self._guard.wait(3 * SECONDS)
        for holder in self._holders.values():
            holder.wait(SECONDS)

    def _connect(self) -> None:
        _do("ip", "netns", "add", self._switch)
        for bridge in ("br0", "br1"):
            _do("ip", "-n", self._switch, "link", "add", bridge, "type", "bridge", "stp_state", "0", "forward_delay", "0")
            _do("ip", "-n", self._switch, "link", "set", bridge, "up")
        for number, name in enumerate(self.names, 1):
            space = self.space(name)
            _do("ip", "netns", "add", space)
            _do("ip", "-n", space, "link", "set", "lo", "up")
            _do("ip", "-n", space, "link", "add", "eth0", "type", "veth", "peer", f"port{number}", "netns", self._switch)
            _do("ip", "-n", self._switch, "link", "set", f"port{number}", "master", "br0", "up")
            self.link(name, up=True)

    def _configure(self) -> None:
        """What ``ip netns exec`` puts over /etc/ssh, /etc/hosts and /etc/nsswitch.conf on each host."""
        known, table = [], ["127.0.0.1 localhost", "::1 localhost"]
        for name in self.names:
            (NETNS / self.space(name) / "ssh").mkdir(parents=True)
            _do("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(self.etc(name) / "ssh" / "host_key"))
            key = (self.etc(name) / "ssh" / "host_key.pub").read_text().strip()
            four, six = self.address(name), self.address(name, 6)
            known.append(f"{name},{name}-six,{four},{six} {key}")
            table += [f"{four} {name}", f"{six} {name}-six"]
        first = self.etc(self.names[0]) / "ssh" / "client_key"
        _do("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(first))
        for name in self.names:
            etc = self.etc(name)
            for part in ("client_key", "client_key.pub"):
                if name != self.names[0]:
                    shutil.copy(first.with_name(part), etc / "ssh" / part)
            for file, text in (("ssh/sshd_config", SSHD), ("ssh/ssh_config", SSH), ("ssh/known_hosts", "\n".join(known)),
                               ("hosts", "\n".join(table)), ("nsswitch.conf", "passwd: files\ngroup: files\nhosts: files")):
                (etc / file).write_text(text + "\n")

    def _start(self, name: str) -> None:
        with open(self.etc(name) / "ssh" / "sshd.log", "a") as log:
            self._holders[name] = subprocess.Popen(
                ["ip", "netns", "exec", self.space(name), "unshare", "--uts", "--ipc", "sh", "-c", HOLDER, "holder", name,
                 *self._private], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8"})

    def _await_ssh(self, name: str) -> None:
        deadline = time.monotonic() + SECONDS
        while "0016" not in _listening(self._holders[name].pid):  # port 22
            said = (self.etc(name) / "ssh" / "sshd.log").read_text()
            assert self._holders[name].poll() is None and time.monotonic() < deadline, f"no sshd on {name}: {said}"
            time.sleep(0.01)

    # What they are ----------------------------------------------------------------------------------------
    def space(self, name: str) -> str:
        """The network namespace of a host."""
        return f"{self._mark}-{name}"

    def etc(self, name: str) -> Path:
        """The directory of the files that a host has in its /etc: ``ssh/known_hosts``, ``hosts``, ..."""
        return NETNS / self.space(name)

    def address(self, name: str, version: int = 4) -> str:
        """A host's IPv4 or IPv6 address."""
        return f"{'10.77.0.' if version == 4 else 'fd77::'}{self._number(name)}"

    def pids(self, name: str) -> list[int]:
        """All processes of a host, its sshd too."""
        return [int(pid) for pid in _do("ip", "netns", "pids", self.space(name)).split()]

    # What is done on them -----------------------------------------------------------------------------------
    def enter(self, name: str, cwd: Path | str = "/") -> tuple[str, ...]:
        """What to put before a command, so that it runs on a host; no process of its own remains between."""
        return ("nsenter", f"--target={self._holders[name].pid}", "--net", "--mount", "--uts", "--ipc", "env", "-C", str(cwd))

    def run(self, name: str, command: Sequence[str], seconds: float = SECONDS, code: int | None = 0,
            **more) -> subprocess.CompletedProcess:
        """Run a command on a host to its end, which must be with this exit ``code``; ``more`` as for subprocess.run."""
        done = subprocess.run([*self.enter(name, more.pop("cwd", "/")), *command], capture_output=True, text=True,
                              timeout=seconds, **more)
        assert code is None or done.returncode == code, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def cover(self, name: str, path: Path | str, by: Path | str) -> None:
        """On this host alone, what lies at ``path`` is what lies at ``by``, until it is powered off."""
        self.run(name, ["mount", "--bind", str(by), str(path)])

    # What befalls them --------------------------------------------------------------------------------------
    def kill(self, name: str) -> list[int]:
        """SIGKILL to every process of a host but what waits for ssh, after all were stopped: none sees another's end
        first."""
        return _kill(lambda: [pid for pid in self.pids(name) if pid != self._holders[name].pid and not _waits_for_ssh(pid)])

    def power_off(self, name: str) -> list[int]:
        """The link goes down, so that no good-bye gets out; then every process is killed."""
        self.link(name, up=False)
        killed = _kill(lambda: self.pids(name))
        self._holders[name].wait(SECONDS)
        return killed

    def power_on(self, name: str) -> None:
        """The host starts again; only its sshd runs."""
        (self.etc(name) / "ssh" / "sshd.log").unlink(missing_ok=True)
        self._start(name)
        self.link(name, up=True)
        self._await_ssh(name)

    def link(self, name: str, up: bool) -> None:
        """The host's own end of its link."""
        space = self.space(name)
        _do("ip", "-n", space, "link", "set", "eth0", "up" if up else "down")
        if up:  # IPv6 addresses do not outlive their link
            _do("ip", "-n", space, "addr", "replace", f"{self.address(name)}/24", "dev", "eth0")
            _do("ip", "-n", space, "addr", "replace", f"{self.address(name, 6)}/64", "dev", "eth0", "nodad")
            self._await_carrier(name)

    def cable(self, name: str, up: bool) -> None:
        """The switch's end of a host's link."""
        _do("ip", "-n", self._switch, "link", "set", self._port(name), "up" if up else "down")
        if up:
            self._await_carrier(name)

    def partition(self, *sides: Sequence[str]) -> None:
        """Up to two sides that do not hear each other, and lose no carrier."""
        for number, side in enumerate(sides):
            for name in side:
                _do("ip", "-n", self._switch, "link", "set", self._port(name), "master", f"br{number}")

    def heal(self) -> None:
        """The end of a partition."""
        self.partition(self.names)

    def mend(self) -> None:
        """The network is again as it was at first."""
        self.heal()
        for name in self.names:
            _do("ip", "-n", self._switch, "link", "set", self._port(name), "up")
            self.link(name, up=True)
            self.rate(name, self._rate)

    def rate(self, name: str, rate: str | None) -> None:
        """How fast a host's link is from now on, both ways; None for as fast as it goes."""
        for space, device in ((self.space(name), "eth0"), (self._switch, self._port(name))):
            _do("tc", "-n", space, "qdisc", "del", "dev", device, "root", check=False)
            if rate:
                _do("tc", "-n", space, "qdisc", "add", "dev", device, "root", "tbf", "rate", rate, "burst", "256kb",
                    "latency", "50ms")

    def _await_carrier(self, name: str) -> None:
        deadline = time.monotonic() + SECONDS
        while " UP " not in _do("ip", "-n", self.space(name), "-br", "link", "show", "eth0"):
            assert time.monotonic() < deadline, f"no carrier on {name}"
            time.sleep(0.01)

    def _number(self, name: str) -> int:
        return self.names.index(name) + 1

    def _port(self, name: str) -> str:
        return f"port{self._number(name)}"


def _do(*command: str, check: bool = True) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert not (check and done.returncode), f"{' '.join(command)}: {done.stderr.strip() or done.returncode}"
    return done.stdout


def _kill(pids) -> list[int]:
    """Stop, then kill all that ``pids()`` names, until it names none."""
    killed: list[int] = []
    deadline = time.monotonic() + SECONDS
    while found := pids():
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in found:
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    pass
        killed += [pid for pid in found if pid not in killed]
        assert time.monotonic() < deadline, f"they do not die: {found}"
        time.sleep(0.005)
    return killed


def _waits_for_ssh(pid: int) -> bool:
    """Whether it is an sshd that listens; those that serve a connection have another title."""
    try:
        return b"[listener]" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _listening(pid: int) -> set[str]:
    """The TCP ports, in hexadecimal, that are listened on in a process's network."""
    try:
        lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    except OSError:
        return set()
    return {line.split()[1].split(":")[1] for line in lines if line.split()[3] == "0A"}


def sweep(mark: str) -> None:
    """Remove all hosts of a mark, with their processes; and those whose maker has died without a guard."""
    for space in _do("ip", "netns", "list").split("\n"):
        space = space.split(" ")[0]
        maker = re.fullmatch(rf"{PREFIX}(\d+)x\w+-\w+", space)
        if space.startswith(f"{mark}-") or maker and not os.path.exists(f"/proc/{maker[1]}"):
            _kill(lambda: [int(pid) for pid in _do("ip", "netns", "pids", space, check=False).split()])
            _do("ip", "netns", "del", space, check=False)
            shutil.rmtree(NETNS / space, ignore_errors=True)
    if NETNS.exists() and not any(NETNS.iterdir()):
        NETNS.rmdir()


if __name__ == "__main__":
    sys.stdin.read()  # until the maker closes it, or ends
    sweep(sys.argv[1])
